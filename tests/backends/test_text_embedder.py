"""Text embeddings against the library called by hand."""

from __future__ import annotations

import base64
import json
import pickle
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends.language.text_encoder import _TokenEncoder, encoder_of, passes
from sheaf_dagster.backends.text_embedder import SentenceTransformersBackend
from sheaf_dagster.batch.worker import local_model, pipeline
from sheaf_dagster.contracts import EmbeddingRequest, OpenAIBatchRequest, deviations_of
from tests.backends.small_llama import save_small_llama
from tests.toys import AlwaysBeside

pytestmark = pytest.mark.model

TEXTS = ["a cat", "", "ein Zug fährt durch das Tal", "long " * 400]


def loaded(minilm: str, **arguments) -> SentenceTransformersBackend:
    backend = SentenceTransformersBackend(minilm, device="cpu", **arguments)
    backend.load()
    return backend


def row(*texts: str, **fields) -> EmbeddingRequest:
    return EmbeddingRequest(request_id=UUID(int=1), model_name="m", texts=list(texts), **fields)


def line(given, **body) -> OpenAIBatchRequest:
    body = {"model": "m", "input": given, **body}
    return OpenAIBatchRequest(custom_id="a", url="/v1/embeddings", body=body)


@pytest.mark.parametrize(
    ("arguments", "by_hand"),
    [
        ({}, {}),
        ({"prompt": "query: "}, {"prompt": "query: "}),
        ({"prompt_name": "query"}, {"prompt_name": "query"}),
        ({"truncate_dim": 64}, {"truncate_dim": 64}),
    ],
)
def test_vectors_are_those_of_the_library(minilm, arguments, by_hand):
    from sentence_transformers import SentenceTransformer

    (answer,) = loaded(minilm, **arguments).batch_predict([row(*TEXTS, normalize=False)])

    expected = SentenceTransformer(minilm, device="cpu").encode(TEXTS, **by_hand)
    np.testing.assert_allclose(answer.embeddings, expected, atol=1e-5)
    assert answer.dim == expected.shape[1]


def test_max_seq_length_and_dtype_are_the_librarys(minilm):
    import torch
    from sentence_transformers import SentenceTransformer

    (short,) = loaded(minilm, max_seq_length=16).batch_predict([row(*TEXTS)])
    (half,) = loaded(minilm, dtype="bfloat16").batch_predict([row(*TEXTS)])

    library = SentenceTransformer(minilm, device="cpu")
    library.max_seq_length = 16
    np.testing.assert_allclose(short.embeddings, library.encode(TEXTS), atol=1e-5)
    library = SentenceTransformer(minilm, device="cpu", model_kwargs={"dtype": torch.bfloat16})
    np.testing.assert_allclose(half.embeddings, library.encode(TEXTS), atol=0.02)


def test_texts_that_are_cut_are_counted(minilm):
    backend = loaded(minilm)

    whole, cut = backend.batch_predict([row("é" * 90, "word " * 200), row("a", "word " * 400)])

    assert deviations_of(whole) == ()
    assert deviations_of(cut) == ("truncated",)
    whole, cut = backend.batch_predict([line("a cat"), line(["a", "word " * 400])])
    assert deviations_of(whole) == ()
    assert deviations_of(cut) == ("truncated",)
    assert set(cut.model_dump()) == {"id", "custom_id", "response", "error"}


def test_a_text_that_grows_when_it_is_normalised_is_counted(minilm):
    from tokenizers import normalizers

    backend = loaded(minilm)
    inner = backend._model.tokenizer.backend_tokenizer
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), inner.normalizer])
    backend._encoder = encoder_of(backend._model, None, 64)

    cut, whole = backend.batch_predict([row("\ufdfa" * 30), row("\ufdfa")])

    assert deviations_of(cut) == ("truncated",), "90 bytes are 540 characters by then"
    assert deviations_of(whole) == ()


def test_batch_lines_are_answered_as_the_api_does(minilm):
    backend = loaded(minilm)
    asked = [line("a cat"), line("a cat", encoding_format="base64", dimensions=384)]

    plain, packed = (a.response.body for a in backend.batch_predict(asked))
    (long,) = backend.batch_predict([line("word " * 20_000)])

    unpacked = np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4")
    np.testing.assert_allclose(unpacked, plain["data"][0]["embedding"], atol=1e-6)
    assert long.response.body["usage"]["prompt_tokens"] == 256
    for body, match in (({"dimensions": 64}, "have 384"), ({"instruction": "x"}, "instruction")):
        with pytest.raises(ValueError, match=match):
            backend.batch_predict([line("a", **body)])
    (cut,) = loaded(minilm, truncate_dim=128).batch_predict([line("a cat", dimensions=64)])
    vector = np.array(plain["data"][0]["embedding"][:64])
    np.testing.assert_allclose(
        cut.response.body["data"][0]["embedding"], vector / np.linalg.norm(vector), atol=1e-5
    )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prompt_name": "nonsense"}, "has no prompt 'nonsense'"),
        ({"prompt": "a", "prompt_name": "query"}, "both"),
        ({"truncate_dim": 4000}, "384 dimensions"),
        ({"truncate_dim": 0}, "at least 1"),
        ({"max_seq_length": 100_000}, "reads 512 tokens"),
        ({"max_seq_length": 2}, "adds 2 special tokens"),
        ({"encode_batch_size": -1}, "at least 1"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_arguments_that_cannot_work_are_refused(minilm, arguments, match):
    with pytest.raises(SpecError, match=match):
        loaded(minilm, **arguments)


ODD = [
    "",
    " leading and trailing ",
    "[SEP] [MASK] marks",
    "e\u0301 Ü 長い 👩🏽\u200d🚀",
    "word " * 300,
    "UPPER lower " * 40,
    "<|im_end|><|pad|>",
]


def test_what_is_tokenised_ahead_is_what_the_library_reads(minilm):
    backend = loaded(minilm, prompt="query: ")
    rows = [row(*ODD[i : i + 2], normalize=False) for i in range(len(ODD) - 1)]

    answers = backend.batch_predict(rows)

    prepared = [backend.prepare(r) for r in rows]
    tokens = backend._model.preprocess(ODD, prompt="query: ")["attention_mask"].sum(1).tolist()
    assert [backend.size(p) for p in prepared] == [sum(tokens[i : i + 2]) for i in range(6)]
    expected = backend._model.encode(ODD, prompt="query: ")
    for i, answer in enumerate(answers):
        np.testing.assert_allclose(answer.embeddings, expected[i : i + 2], atol=1e-5)
    assert [bool(deviations_of(a)) for a in answers] == [False, False, False, True, True, False]


@pytest.mark.parametrize("splits", [False, True])
def test_a_copy_for_another_process_reads_special_tokens_as_the_model_does(minilm, splits):
    backend = loaded(minilm)
    tokenizer = backend._model.tokenizer.backend_tokenizer
    tokenizer.encode_special_tokens = splits
    backend._encoder = _TokenEncoder(backend._model, None, 64)
    asked = row("[SEP] a [MASK]", "[CLS]")

    copied = pickle.loads(pickle.dumps(backend.without_model()))

    mine, other = backend.prepare(asked), copied.prepare(asked)
    assert [t.ids.tolist() for t in other] == [t.ids.tolist() for t in mine]
    assert backend.size(mine) > 8 if splits else backend.size(mine) == 8
    assert copied._model is copied._encoder._model is None


@pytest.mark.parametrize(("side", "chat"), [("left", False), ("right", False), ("right", True)])
def test_models_that_pad_or_read_otherwise_are_as_with_the_library(tmp_path, side, chat):
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    llama = save_small_llama(tmp_path / "llama", length=64)
    if not chat:
        (tmp_path / "llama" / "chat_template.jinja").unlink()
    network = Transformer(llama, tokenizer_args={"padding_side": side})
    pooling = Pooling(network.get_embedding_dimension(), pooling_mode="lasttoken")
    SentenceTransformer(modules=[network, pooling], device="cpu").save(str(tmp_path / "model"))
    backend = loaded(str(tmp_path / "model"))
    texts = [text for text in ODD if text]

    (answer,) = backend.batch_predict([row(*texts, normalize=False)])

    # Characters, where only the library knows how a chat template has it read.
    assert backend.size(backend.prepare(row("a b a b"))) == (7 if chat else 4)
    exact = {"dtype": torch.float32}
    library = SentenceTransformer(str(tmp_path / "model"), device="cpu", model_kwargs=exact)
    np.testing.assert_allclose(answer.embeddings, library.encode(texts), atol=1e-4)
    assert deviations_of(answer) == ("truncated",)


def test_a_model_without_a_network_is_left_to_the_library(minilm, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = loaded(minilm)._model.tokenizer.backend_tokenizer
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    backend = loaded(str(tmp_path / "static"))

    answer, told = backend.batch_predict([row("a cat", "", normalize=False), line("two words")])

    expected = SentenceTransformer(str(tmp_path / "static"), device="cpu").encode(["a cat", ""])
    np.testing.assert_allclose(answer.embeddings, expected, atol=1e-5)
    assert told.response.body["usage"]["prompt_tokens"] == 2
    assert backend.size(backend.prepare(row("a cat"))) == 5


@pytest.mark.parametrize(
    ("lengths", "cut"),
    [
        ([], []),
        ([5], [(0, 1)]),
        ([9, 9, 9, 9], [(0, 3), (3, 4)]),
        ([100, 95, 95, 20, 19, 1], [(0, 3), (3, 5), (5, 6)]),
        ([100, 1, 1], [(0, 1), (1, 3)]),
    ],
)
def test_a_pass_ends_where_padding_would_cost_more_than_another(lengths, cut):
    assert list(passes(lengths, most=3, cost=10)) == cut


@pytest.mark.parametrize("beside", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"batch_budget": 64}])
def test_a_file_is_answered_as_the_library_does_whatever_makes_the_batches(
    minilm, tmp_path, options, beside, monkeypatch
):
    monkeypatch.setattr(pipeline, "Beside", AlwaysBeside if beside else pipeline.Beside)
    texts = [" ".join(["word"] * (7 * i % 23 + 1)) for i in range(40)]
    rows = [row(t, normalize=False).model_copy(update={"request_id": None}) for t in texts]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(r.model_dump_json(exclude_none=True) + "\n" for r in rows))
    model = ModelSpec(
        name=f"minilm {beside} {options}",
        model_type="embedding",
        backend="sentence_transformers",
        backend_kwargs={"model_id": minilm, "device": "cpu"},
    )

    result = BatchRunner(model).run(
        BatchSpec(source=str(source), sink=str(tmp_path / "out.jsonl"), compute="local", **options)
    )

    found = [json.loads(line)["embeddings"][0] for line in open(result.sink)]
    np.testing.assert_allclose(found, loaded(minilm)._model.encode(texts), atol=1e-5)
    assert result.padding_fraction < 0.25
    (one,) = [m for m in local_model._MODELS.values() if m._context.spec == model]
    assert (one._loaded.beside._pool is not None) == beside
    one.close()
