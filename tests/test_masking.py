"""Credentials in URIs stay out of messages, error rows, causes and tracebacks."""

from __future__ import annotations

import json
import logging
import pickle
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    InputValidationError,
    ModelBackend,
    ModelSpec,
    PredictError,
    SheafError,
    SpecError,
)
from sheaf_dagster.batch.messages import ErrorMessage
from sheaf_dagster.batch.rows.repeatable import repeatable
from sheaf_dagster.masking import masked, masked_error
from tests.conftest import read_rows
from tests.toys import NumberResponse

SECRETS = st.text("abcXYZ019-._~+=:!$*", min_size=12, max_size=30)
PARAMETERS = [
    "X-Amz-Signature", "X-Amz-Credential", "X-Amz-Security-Token", "X-Goog-Signature", "sig",
    "token", "key", "api_key", "apikey", "password", "access_token", "AWSAccessKeyId", "Signature",
    "subscription-key", "client_secret", "Key-Pair-Id", "sas", "se", "SharedAccessSignature",
]  # fmt: skip


@given(SECRETS, SECRETS, st.sampled_from(["http", "https", "s3", "gs", "ftp", "abfs", "sftp"]))
def test_user_information_is_masked_and_the_rest_stays(user, password, scheme):
    uri = f"{scheme}://{user}:{password}@host:81/a%20b.png?w=3"

    text = masked(f"can't read {uri}, nor {uri}\nor '{uri}'")

    shown = f"{scheme}://***@host:81/a%20b.png?w=3"
    assert text == f"can't read {shown}, nor {shown}\nor '{shown}'"


@given(SECRETS, st.sampled_from(PARAMETERS), st.sampled_from("?#"), st.booleans())
def test_parameters_that_grant_are_masked_wherever_they_stand(secret, name, mark, upper):
    name = name.upper() if upper else name
    for uri in (
        f"https://host/a.png{mark}{name}={secret}&w=3",
        f"https://host/a.png{mark}w=3&{name}={secret}",
        f"/a.png{mark}{name}={secret}",  # as clients quote what they asked a host for
        f"https://host/a.png{mark}{name.replace('-', '%2D')}={secret}",
    ):
        text = masked(f'in "{uri}" and <{uri}>')
        assert secret not in text
        assert "a.png" in text and text.count("***") == 2
        assert text.count("w=3") == 2 * uri.count("w=3")


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:p@ss:w/rd?@host/a", "http://***@host/a"),
        ("https://ghp_token@host/a", "https://***@host/a"),
        ("s3://AKIA:SE/CR+ET@bucket/a", "s3://***@bucket/a"),
        ("zip://a.png::https://u:secret@h/x.zip", "zip://a.png::https://***@h/x.zip"),
        ("http://u:secret@h/a,http://v:secret@h/b", "http://***@h/a,http://***@h/b"),
        (
            "https://h/?url=http%3A%2F%2Fuser%3Asecret%40h%2Fa%3Fsig%3Dsec%2520ret&y=1",
            "https://h/?url=http://***@h/a?sig=***&y=1",
        ),
        ("https://h/a?w=1&amp;sig=secret&amp;x=1", "https://h/a?w=1&amp;sig=***&amp;x=1"),
        ("https://h/?a=1\\u0026token=secret\\u0026b=1", "https://h/?a=1\\u0026token=***"),
    ],
)
def test_odd_forms_are_masked_too(uri, shown):
    assert masked(f"({uri})").startswith(f"({shown}")
    assert "secret" not in masked(uri)


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/photo@2x.png", "http://[::1]:80/a@b.png", "abfs://container@account/a",
        "sftp://me@host/a", "s3://bucket/a@b:c.png?versionId=3", "https://h/a?keyword=cat&tokens=3",
        "https://h/a%20b.png?x=%41", "mail me@host: 50 % of a=b", "token=3 & key=4", "",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_left_as_it_is(text):
    assert masked(text) == text


@pytest.mark.parametrize("start", ["@=% a://", "a://b:", "http://x?@%"])
@pytest.mark.parametrize(
    "unit",
    ["y", "a-", "a://", "a://b:", "&key", "&a_", "%25", "%3a%2f%2f", "u:p@", "pid ", "/tmp/"],
)
def test_long_texts_cost_their_length(start, unit):
    # A pattern that is quadratic takes many minutes for this, and the limit of a test ends it.
    text = start + unit * (500_000 // len(unit))
    assert masked(text).startswith(start[:4])
    assert repeatable(text).startswith(start[:4])


def test_what_is_encoded_without_end_is_hidden_as_a_whole():
    uri = "https://host/a?next=https%3A//u%3Ahunter22%40b/"
    for _ in range(20):
        uri = uri.replace("%", "%25")
        assert "hunter22" not in masked(f"cannot read {uri}")


def test_an_error_is_masked_with_its_causes_and_keeps_its_class():
    def fail() -> None:
        try:
            try:
                raise FileNotFoundError(2, "no such file", "http://u:secret@h/a")
            except OSError as e:
                raise KeyError("https://h/a?sig=secret") from e
        except KeyError as e:
            raise ValueError("http://u:secret@h/a can't be read") from e

    with pytest.raises(ValueError) as found:
        fail()
    error = masked_error(found.value)

    assert type(error) is ValueError
    assert str(error) == "http://***@h/a can't be read"
    text = "".join(traceback.format_exception(error))
    assert "secret" not in text.replace('"http://u:secret@h/a', "").replace(
        '"https://h/a?sig=secret', ""
    )  # what is left is this test's own code
    assert "KeyError" in text and "FileNotFoundError" in text and "in fail" in text
    plain = ValueError("nothing")
    assert masked_error(plain) is plain


def test_our_own_errors_never_hold_any_in_whatever_process():
    error = SpecError("model file http://u:secret@h/m.onnx does not exist")

    failure = ErrorMessage.of(error, "in.jsonl")

    assert str(error) == str(pickle.loads(pickle.dumps(error)))
    assert "secret" not in f"{error}{error.args}{failure}"
    assert isinstance(error, SheafError)


URIS = [
    "http://user:hunter22@127.0.0.1:9/a.png",
    "http://127.0.0.1:9/a.png?X-Amz-Signature=hunter22",
]


class Reader(ModelBackend):
    """Reads each row's note as a URI."""

    model_type = "number"

    def load(self) -> None:
        pass

    def predict(self, request):
        from sheaf_dagster.backends.common.files import read_uri

        read_uri(request.note, {})
        return NumberResponse(request_id=request.request_id, model_name="m", value=0)


@pytest.mark.ray
@pytest.mark.parametrize(
    "compute", ["local", "tasks", pytest.param("actors", marks=pytest.mark.long)]
)
def test_a_rows_uri_shows_no_secret_wherever_it_fails(
    compute, write_rows, tmp_path, ray_cluster, caplog, capfd
):
    caplog.set_level(logging.DEBUG, "sheaf_dagster")
    runner = BatchRunner(
        ModelSpec(name="r", model_type="number", backend=f"{__name__}:Reader"), on_progress="auto"
    )
    options = {"compute": compute, "num_actors": 1 if compute == "actors" else None}
    sources = [write_rows([1, 2], f"{i}.jsonl", note=uri) for i, uri in enumerate(URIS)]
    specs = [
        BatchSpec(source=source, sink=f"{source}.{on_error}", on_error=on_error, **options)
        for source in sources
        for on_error in ("record", "fail")
    ]

    outcomes = {o.spec.sink: o for o in runner.run_many(specs)}

    shown = caplog.text + "".join(capfd.readouterr())
    for source in sources:
        rows = read_rows(f"{source}.record")
        failed = outcomes[f"{source}.fail"].error
        assert isinstance(failed, PredictError)
        for text in (str(failed), *(row["error"]["message"] for row in rows)):
            assert "127.0.0.1:9/a.png" in text and "***" in text
        shown += "".join(traceback.format_exception(failed)) + json.dumps(rows)
        assert len(rows) == outcomes[f"{source}.record"].result.error_rows == 2
    assert "hunter22" not in shown


@pytest.mark.parametrize("uri", URIS)
def test_excerpts_of_invalid_rows_show_no_secret(uri, tmp_path):
    row = {"model_type": "embedding", "model_name": "m"}
    lines = [
        json.dumps({**row, "image_uris": [uri, 3]}),
        json.dumps({**row, "image_uris": uri}),
        json.dumps({**row, "image_uris": {uri: ["long " * 40 + uri]}}),
        json.dumps({"image_uris": [uri], "texts": ["x" * 300]}),
        f'{{"image_uris": ["{uri}"], oh no',
        json.dumps({**row, "model_type": uri, "texts": []}),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    runner = BatchRunner(ModelSpec(name="m", model_type="embedding", backend="image_embedder"))
    spec = BatchSpec(source=str(tmp_path / "in.jsonl"), sink="/nowhere/out.jsonl", compute="local")

    report = runner.validate(spec)
    with pytest.raises(InputValidationError) as e:
        runner.run(spec.model_copy(update={"sink": str(tmp_path / "out.jsonl")}))

    assert {v.line for v in report.violations} == {1, 2, 3, 4, 5, 6}
    assert "hunter22" not in report.model_dump_json() + str(e.value)
    assert "***" in report.model_dump_json()
