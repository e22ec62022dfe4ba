"""Labels, entities and masked words of tiny random models, as the library's pipelines find them."""

from __future__ import annotations

import json
import shutil

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.transformers_text import TransformersPipelineBackend
from sheaf_dagster.contracts import deviations_of
from sheaf_dagster.testing import check_backend
from tests.backends.language_rows import LONG, TEXTS, causal, line, row
from tests.backends.weights import TINY, WORDS, tokenizer
from tests.conftest import read_rows

pytestmark = pytest.mark.model


def test_classifiers_rank_the_labels_of_each_row(models):
    rows = [row(0), row(1, "dog"), row(2, "the blue dog says a red cat")]
    backend = TransformersPipelineBackend(models["moods"], "text-classification", device="cpu")
    check_backend(backend, rows)
    backend.load()

    answers = backend.batch_predict(rows)

    for answer in answers:
        assert {one.label for one in answer.labels} == {"good", "bad", "so so"}
        scores = [one.score for one in answer.labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_zero_shot_rows_may_have_labels_of_their_own(models):
    rows = [
        row(0, candidate_labels=["cat", "dog"]),
        row(1, "dog", candidate_labels=["red", "blue", "a"]),
        row(2, "red", candidate_labels=["cat", "dog"]),
    ]
    backend = TransformersPipelineBackend(
        models["entails"], "zero-shot-classification", device="cpu"
    )
    check_backend(backend, rows)
    backend.load()

    assert [len(a.labels) for a in backend.batch_predict(rows)] == [2, 3, 2]
    with pytest.raises(ValueError, match="needs 'candidate_labels'"):
        backend.predict(row(0))


def test_entities_come_with_their_places(models):
    backend = TransformersPipelineBackend(
        models["tokens"],
        "token-classification",
        device="cpu",
        pipeline_kwargs={"aggregation_strategy": "simple"},
    )
    check_backend(backend, [row(0), row(1, "dog")])
    backend.load()

    (answer,) = backend.batch_predict([row(0)])

    assert answer.entities
    assert all({"entity_group", "start", "end", "score"} <= set(e) for e in answer.entities)
    json.loads(answer.model_dump_json())


CASES = {
    "classes": ["a photo of a cat", "dog", "the blue dog says a red cat", "red blue", "cat"],
    "masks": ["a [UNK] of a [UNK]", "[UNK] dog [UNK]", "the [UNK] dog says a [UNK] cat"],
    "mask": [
        "a [UNK] of a cat",
        "[UNK] dog",
        "the blue dog says a [UNK] cat",
        "[UNK]",
        "red [UNK]",
    ],
}


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, models) -> dict[str, tuple[str, str]]:
    """By a name of the case: the task and a folder with its model."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2ForSequenceClassification

    root = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    moods = {0: "good", 1: "bad", 2: "so so"}
    with_mask = tokenizer()
    with_mask.add_special_tokens({"mask_token": "[UNK]"})
    size = {"vocab_size": len(WORDS), "max_position_embeddings": 64, "pad_token_id": 0}
    BertForMaskedLM(BertConfig(**TINY, **size)).save_pretrained(root / "masks")
    with_mask.save_pretrained(root / "masks")
    unpadded = tokenizer()
    unpadded.pad_token = None
    GPT2ForSequenceClassification(
        GPT2Config(vocab_size=len(WORDS), n_positions=64, n_embd=32, n_layer=2, n_head=4,
                   id2label=moods, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(root / "unpadded")  # fmt: skip
    unpadded.save_pretrained(root / "unpadded")
    return {
        "classes": ("text-classification", models["moods"]),
        "no_padding_token": ("text-classification", str(root / "unpadded")),
        "zero_shot": ("zero-shot-classification", models["entails"]),
        "entities": ("token-classification", models["tokens"]),
        "mask": ("fill-mask", str(root / "masks")),
        "masks": ("fill-mask", str(root / "masks")),
    }


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    "case", ["classes", "no_padding_token", "zero_shot", "entities", "mask", "masks"]
)
def test_every_task_answers_as_its_pipeline_called_on_each_row(case, size, classifiers):
    from transformers import pipeline

    task, folder = classifiers[case]
    texts = CASES.get(case, CASES["classes"])
    options = {"zero_shot": {"candidate_labels": ["cat", "dog"]}, "classes": {"top_k": None}}
    options["no_padding_token"] = options["classes"]
    by_hand = pipeline(task, folder, device="cpu")
    fields = options[case] if case == "zero_shot" else {}
    backend = TransformersPipelineBackend(
        folder, task, device="cpu", dtype="float32", model_batch_size=size
    )
    backend.load()
    rows = [row(i, text, **fields) for i, text in enumerate(texts)]

    answers = [
        a for i in range(0, len(rows), size) for a in backend.batch_predict(rows[i : i + size])
    ]

    for text, answer in zip(texts, answers, strict=True):
        wanted = by_hand(text, **options.get(case, {}))
        if task == "zero-shot-classification":
            wanted = [*zip(wanted["labels"], wanted["scores"], strict=True)]
        elif task == "fill-mask":
            of_masks = wanted if case == "masks" else [wanted]
            wanted = [(w["token_str"], w["score"]) for of_mask in of_masks for w in of_mask]
            assert [a.mask for a in answer.labels] == [
                i for i, of_mask in enumerate(of_masks) for _ in of_mask
            ]
        elif task == "token-classification":
            assert [e["entity"] for e in answer.entities] == [w["entity"] for w in wanted]
            assert [(e["start"], e["end"]) for e in answer.entities] == [
                (w["start"], w["end"]) for w in wanted
            ]
            continue
        else:
            wanted = [(w["label"], w["score"]) for w in wanted]
        # Two scores that are all but equal may change places.
        found = sorted((round(a.score, 4), a.label, a.score) for a in answer.labels)
        right = sorted((round(score, 4), label, score) for label, score in wanted)
        assert [f[1] for f in found] == [r[1] for r in right]
        assert [f[2] for f in found] == pytest.approx([r[2] for r in right], abs=1e-5)
        assert deviations_of(answer) == ()


@pytest.mark.parametrize(
    ("case", "options", "says"),
    [
        ("classes", {"nope": 1}, r"pipeline_kwargs\.nope: there is no such argument.*top_k"),
        ("classes", {"top_k": "x"}, r"top_k.*integer \(got 'x'\)"),
        ("classes", {"top_k": 0}, r"top_k.*greater than 0"),
        ("classes", {"function_to_apply": "tanh"}, r"function_to_apply.*'tanh'"),
        ("entities", {"aggregation_strategy": "nope"}, r"aggregation_strategy.*'nope'"),
        ("entities", {"aggregation_strategy": "simple", "stride": 500}, r"can't work.*stride"),
        ("zero_shot", {"hypothesis_template": "about"}, r"hypothesis_template: has no place \{\}"),
        ("zero_shot", {"candidate_labels": ["cat"]}, r"candidate_labels: there is no such"),
        ("mask", {"targets": ["cat", "horse"]}, r"targets: the model has no token horse"),
        ("mask", {"tokenizer_kwargs": {"nope": 1}}, r"tokenizer_kwargs\.nope: there is no such"),
    ],
)
def test_arguments_of_a_pipeline_that_cannot_work_are_refused(case, options, says, classifiers):
    task, folder = classifiers[case]
    with pytest.raises(SpecError, match=says):
        TransformersPipelineBackend(folder, task, device="cpu", pipeline_kwargs=options).load()


def test_a_model_that_says_nothing_of_entailment_is_no_zero_shot_classifier(models, tmp_path):
    folder = shutil.copytree(models["moods"], tmp_path / "moods")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label2id": {"good": 0, "bad": 1}}))
    backend = TransformersPipelineBackend(str(folder), "zero-shot-classification", device="cpu")

    with pytest.raises(SpecError, match=r"label 'entailment'; its labels are good, bad"):
        backend.load()


def test_a_text_longer_than_what_was_asked_to_be_read_is_counted(models):
    backend = TransformersPipelineBackend(
        models["moods"],
        "text-classification",
        device="cpu",
        dtype="float32",
        pipeline_kwargs={"max_length": 4, "top_k": 1},
    )
    backend.load()

    long, short = backend.batch_predict([row(0, "the blue dog says"), row(1, "the blue")])

    assert (deviations_of(long), deviations_of(short)) == (("truncated",), ())
    assert long.labels == backend.predict(row(0, "the blue")).labels


@pytest.mark.parametrize("case", ["classes", "no_padding_token", "zero_shot", "entities", "mask"])
def test_a_text_that_is_cut_is_counted(case, classifiers):
    task, folder = classifiers[case]
    fields = {"candidate_labels": ["cat", "dog"]} if case == "zero_shot" else {}
    backend = TransformersPipelineBackend(folder, task, device="cpu")
    backend.load()

    long, short = backend.batch_predict(
        [row(0, "[UNK] " + LONG, **fields), row(1, "[UNK] dog", **fields)]
    )

    assert deviations_of(long) == ("truncated",)
    assert deviations_of(short) == ()


def test_entities_of_a_long_text_are_found_in_windows(models):
    backend = TransformersPipelineBackend(
        models["tokens"],
        "token-classification",
        device="cpu",
        pipeline_kwargs={"aggregation_strategy": "simple"},
    )
    backend.load()

    long, short = backend.batch_predict([row(0, LONG), row(1, "the blue dog")])

    assert deviations_of(long) == ()
    assert min(e["start"] for e in long.entities) == 0
    assert max(e["end"] for e in long.entities) == len(LONG)
    (alone,) = backend.batch_predict([row(1, "the blue dog")])
    assert alone == short


def test_a_field_that_a_task_does_not_look_at_is_counted(models):
    classes = TransformersPipelineBackend(models["moods"], "text-classification", device="cpu")
    classes.load()
    generates = causal(models)
    generates.load()

    assert deviations_of(classes.predict(row(0, temperature=0.5))) == ("ignored_field",)
    assert deviations_of(classes.predict(row(0))) == ()
    assert deviations_of(generates.predict(row(0, candidate_labels=["cat"]))) == ("ignored_field",)


BY_SIZE = [
    ("text-generation", "causal", TEXTS),
    (
        "token-classification",
        "tokens",
        [row(i, t) for i, t in enumerate([*CASES["classes"], LONG])],
    ),
    ("text-classification", "moods", [row(i, t) for i, t in enumerate([*CASES["classes"], LONG])]),
]


@pytest.mark.parametrize(("task", "name", "rows"), BY_SIZE, ids=[case[0] for case in BY_SIZE])
def test_rows_taken_by_size_are_answered_as_alone(task, name, rows, models, tmp_path):
    backend = TransformersPipelineBackend(
        models[name], task, device="cpu", dtype="float32", max_new_tokens=8
    )
    backend.load()
    source = tmp_path / "in.jsonl"
    source.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    model = ModelSpec(
        name="tiny",
        model_type="text",
        backend="transformers_pipeline",
        backend_kwargs={
            "model_id": models[name],
            "task": task,
            "device": "cpu",
            "dtype": "float32",
            "max_new_tokens": 8,
        },
    )

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(tmp_path / "out"), compute="local", batch_budget=40)
    )

    for request, found in zip(rows, read_rows(result.sink), strict=True):
        (alone,) = backend.batch_predict([request])
        assert _rounded(found) == _rounded(json.loads(alone.model_dump_json()))
    assert result.shape == "stages"
    assert 0 < result.padding_fraction < 1


def test_a_row_counts_as_many_tokens_as_it_may_come_to(models):
    backend = causal(models)
    backend.load()
    words, labels = (
        ["a", "cat"],
        TransformersPipelineBackend(models["entails"], "zero-shot-classification", device="cpu"),
    )
    labels.load()

    def size(of, request) -> int:
        return of.size(of.prepare(request))

    alone = size(backend, row(0, "cat", max_new_tokens=1))
    assert size(backend, row(0, "cat", max_new_tokens=6)) == alone + 5
    assert size(backend, row(0, "cat dog", max_new_tokens=1)) == alone + 1
    assert size(backend, line(0, prompt="cat", max_tokens=1, n=3)) == 3 * alone
    one = size(labels, row(0, "cat", candidate_labels=words[:1]))
    assert size(labels, row(0, "cat", candidate_labels=words)) >= 2 * one


def _rounded(value):
    if isinstance(value, dict):
        return {name: _rounded(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value
