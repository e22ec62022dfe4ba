"""Fields of the rows that travel along into the answers."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from pydantic import ConfigDict, RootModel, model_serializer

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.keep import (
    check_keep,
    fields_of,
    with_fields,
    with_free_fields,
    without_fields,
)
from sheaf_dagster.storage.formats import FieldMap
from tests.batch.jobs import here_and_in_workers, spec
from tests.conftest import read_rows
from tests.toys import Doubler, NumberRequest, NumberResponse, doubler, shaped

ROWS = 40


def run(job, model):
    return BatchRunner(model).run(job)


@pytest.fixture
def source(write_rows):
    """Rows with a price that the contract doesn't know, as it is written; every third has none."""
    path = write_rows(list(range(ROWS)))
    lines = open(path).read().splitlines()
    for n in range(0, ROWS, 3):
        lines[n] = lines[n][:-1] + f', "price": {n}.50, "shop": {{"name": "Ü{n}"}}}}'
    open(path, "w").write("\n".join(lines))
    return path


@here_and_in_workers
def test_fields_are_copied_as_they_stand_into_answers_and_error_rows(mode, source, tmp_path):
    plain = spec(source, tmp_path, batch_size=8, on_error="record", **mode)
    model = doubler(fail_on=3)
    run(plain, model)
    answers = open(plain.sink, "rb").read().splitlines()
    job = plain.model_copy(update={"keep": ["price", "group", "shop"], "sink": plain.sink + "2"})

    result = run(job, model)

    assert result.error_rows == 1
    assert result.validation.unknown_fields == {}
    for n, (line, answer) in enumerate(zip(open(job.sink, "rb"), answers, strict=True)):
        price, shop = (f"{n}.50", f'{{"name": "Ü{n}"}}') if n % 3 == 0 else ("null", "null")
        fields = f',"price":{price},"group":null,"shop":{shop}}}\n'
        assert line == answer[:-1] + fields.encode()
    assert "error" in read_rows(job.sink)[3]


@pytest.mark.parametrize("shape", ["stages", "flight"])
@pytest.mark.parametrize("how", [{}, {"bucket_by": "group"}, {"redact": True}])
def test_fields_are_those_of_the_answers_row_in_any_shape(shape, how, source, tmp_path):
    how = dict(how)
    runner = BatchRunner(shaped(shape, fail_every=9), redact_rows=how.pop("redact", False))
    job = spec(source, tmp_path, compute="local", keep=["value", "price"], on_error="record", **how)

    with pytest.raises(sd.SpecError, match="keep: 'value' is a field of NumberResponse itself"):
        runner.run(job)
    runner.run(job.model_copy(update={"keep": ["price"]}))

    assert [r["price"] for r in read_rows(job.sink)] == [
        n + 0.5 if n % 3 == 0 else None for n in range(ROWS)
    ]


def test_other_fields_are_unknown_as_ever(source, tmp_path):
    job = spec(source, tmp_path, compute="local", keep=["price"], strict=True)

    with pytest.raises(sd.InputValidationError, match="'shop': is not a field"):
        run(job, doubler())

    lenient = run(job.model_copy(update={"strict": False}), doubler())
    assert lenient.validation.unknown_fields == {"shop": 14}
    assert run(job.model_copy(update={"keep": ["price", "shop"]}), doubler()).rows == ROWS


def test_kept_answers_have_the_fields_that_this_run_keeps(source, tmp_path):
    job = spec(source, tmp_path, compute="local", batch_size=8, on_error="record", keep=["shop"])
    run(job, shaped("call", fail_on=7))

    run(job.model_copy(update={"keep": ["price", "shop"], "only": "failed"}), shaped("call"))

    whole = job.model_copy(update={"keep": ["price", "shop"], "sink": job.sink + "2"})
    run(whole, shaped("call"))
    mended, anew = open(job.sink, "rb").readlines(), open(whole.sink, "rb").readlines()
    assert mended == anew


@pytest.mark.parametrize("keep", [[], ["price"]])
def test_a_field_that_only_some_answers_would_have_is_refused(source, tmp_path, keep):
    job = spec(source, tmp_path, compute="local", batch_size=8, on_error="record", keep=["shop"])
    run(job, shaped("call", fail_on=7))
    before = open(job.sink, "rb").read()

    with pytest.raises(sd.PreviousOutputError, match="have a field 'shop', .* name it in keep"):
        run(job.model_copy(update={"keep": keep, "only": "failed"}), shaped("call"))

    assert open(job.sink, "rb").read() == before


def test_what_is_kept_is_part_of_the_fingerprint(source, tmp_path):
    job = spec(source, tmp_path)
    runner = BatchRunner(doubler())

    fingerprints = {
        runner.fingerprint(job.model_copy(update={"keep": keep}))
        for keep in ([], ["price"], ["price", "shop"])
    }

    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (b'{"a": 1.0 , "b-c":{"x": [1 , 2]} }', b',"a":1.0,"b-c":{"x": [1 , 2]}'),
        (b'{"b-c":12345678901234567890123}', b',"a":null,"b-c":12345678901234567890123'),
        (b'{"a":NaN,"b-c":{"x":[Infinity,1]}}', b',"a":null,"b-c":{"x":[null,1]}'),
        (b'{"a":1.50,"b-c":"5e123"}', b',"a":1.50,"b-c":"5e123"'),
        (
            b'{"a":[12345678901234567890.10,1e999],"b-c":{"\\ud800":9223372036854775808}}',
            b',"a":[12345678901234567890.10,null],"b-c":{"?":9223372036854775808}',
        ),
        (b'{"a":1e999,"b-c":"1e999"}', b',"a":null,"b-c":"1e999"'),
        (b'{"a":%b,"b-c":%b}' % (b"9" * 5000, b"9" * 308), b',"a":null,"b-c":%b' % (b"9" * 308)),
        (b'{"a":1,"a":2}', b',"a":2,"b-c":null'),
        ('{"a":"\u2028é"}'.encode(), ',"a":"\u2028é","b-c":null'.encode()),
    ],
)
def test_a_field_keeps_its_text_but_for_what_json_does_not_know(line, fields):
    assert fields_of(("a", "b-c"))(line) == fields
    for answer in (b'{"y":1}', b"{}"):
        whole = with_fields(answer, fields)
        assert json.loads(whole).keys() == {*json.loads(answer), "a", "b-c"}
        for probably in (b"", b',"a":7', fields):
            assert without_fields(whole, ["a", "b-c"], probably) == answer


def test_a_field_of_any_name_can_be_kept(tmp_path):
    names = ('a"b', "new\nline", "a.b", "no")
    line = b'{"model_name":"m","value":1,"a\\"b":1.50,"new\\nline":[1 , 2],"a.b":"x"}'
    found = b',"a\\"b":1.50,"new\\nline":[1 , 2],"a.b":"x","no":null'
    assert fields_of(names)(line) == found

    (tmp_path / "in.jsonl").write_bytes(line + b"\n")
    job = spec(tmp_path / "in.jsonl", tmp_path, compute="local", keep=[*names])
    run(job, doubler())
    assert open(job.sink, "rb").read().endswith(found + b"}\n")


def test_rows_with_such_fields_take_the_short_cut():
    fields = fast_codec(NumberRequest, ("sku", "value")).fields

    assert fields(b'{"model_name":"m","value":1,"sku":[1]}')
    assert fields(b'{"model_name":"m","value":1}')
    for line in (b'{"model_name":"m","value":1,"sku":NaN}', b'{"model_name":"m","value":1,"s":1}'):
        assert fields(line) is None


class Open(NumberResponse):
    model_config = ConfigDict(extra="allow")


class Strict(NumberRequest):
    model_config = ConfigDict(extra="forbid")


class Listed(RootModel[list[float]]):
    pass


@pytest.mark.parametrize(
    ("keep", "request_type", "response", "said"),
    [
        (["note"], NumberRequest, NumberResponse, "'note' is a field of NumberResponse itself"),
        (["request_id"], NumberRequest, NumberResponse, "'request_id' is a field"),
        (["sku"], Strict, NumberResponse, "Strict forbids fields that it doesn't know.*'sku'"),
        (["sku"], NumberRequest, Listed, "Listed is not a JSON object"),
    ],
)
def test_fields_that_cannot_travel_are_refused(keep, request_type, response, said):
    with pytest.raises(sd.SpecError, match=said):
        check_keep(keep, request_type, response)

    check_keep([], request_type, response)
    check_keep(["group"], Strict, NumberResponse)


def test_a_field_whose_column_is_read_as_another_one_is_refused():
    taken = FieldMap(columns={"value": "group"})
    with pytest.raises(sd.SpecError, match="reads the column 'group' as the field 'value'"):
        check_keep(["group"], NumberRequest, NumberResponse, taken)

    swapped = FieldMap(columns={"value": "group", "group": "g"})
    check_keep(["group"], NumberRequest, NumberResponse, swapped)


@pytest.mark.parametrize("keep", [["a", "a"], [""], ["error"]])
def test_names_that_cannot_be_fields_are_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        sd.BatchOptions(keep=keep)


@pytest.mark.parametrize(
    ("error_row", "whole"),
    [
        (b'{"error":"no"}', b'{"error":"no","a":1.50,"b-c":null}'),
        (b'{"a":"mine","error":"no"}', b'{"a":"mine","error":"no","b-c":null}'),
        (b'{"b-c":null,"a":{"a":1}}', b'{"b-c":null,"a":{"a":1}}'),
        (b'{"e":{"a":1}}', b'{"e":{"a":1},"a":1.50,"b-c":null}'),
        (b"{}", b'{"a":1.50,"b-c":null}'),
    ],
)
def test_an_error_rows_own_field_wins(error_row, whole):
    assert with_free_fields(error_row, b',"a":1.50,"b-c":null') == whole


class Labelled(NumberRequest):
    """A request whose error rows have a form of their own."""

    model_type: str = "labelled"

    def error_record(self, error):
        return {"error": str(error), "price": "unpaid"}


class Labeller(Doubler):
    model_type = "labelled"


@pytest.mark.parametrize(
    ("suffix", "how"), [("", {}), ("", {"reuse": "previous"}), (".parquet", {})]
)
@pytest.mark.usefixtures("own_contracts")
def test_an_error_row_has_no_field_twice(write_rows, tmp_path, suffix, how):
    sd.register_contract("labelled", Labelled, NumberResponse)
    source = write_rows([1, 3, 3], model_type="labelled", price="1.50", shop="A")
    model = doubler(fail_on=3).model_copy(
        update={"model_type": "labelled", "backend": f"{__name__}:Labeller"}
    )
    job = spec(source, tmp_path, compute="local", on_error="record", keep=["shop", "price"], **how)
    job = job.model_copy(update={"sink": job.sink + suffix})

    run(job, model)

    if suffix:
        rows = pq.read_table(job.sink).to_pylist()
    else:
        rows = [json.loads(line, object_pairs_hook=once_each) for line in open(job.sink)]
    assert [(r["shop"], r["price"]) for r in rows] == [("A", "1.50"), *[("A", "unpaid")] * 2]


def once_each(pairs):
    """A JSON object none of whose names is there twice."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


class Talkative(sd.ModelBackend):
    """Adds a field of its own to its answers."""

    model_type = "talk"

    def load(self):
        pass

    def predict(self, request):
        return Open(request_id=request.request_id, model_name="m", value=1, sku="mine")


class Shout(NumberResponse):
    @model_serializer
    def _as_text(self) -> str:
        return "loud"


class Shouter(sd.ModelBackend):
    """Answers with what is written as a text."""

    model_type = "shout"

    def load(self):
        pass

    def predict(self, request):
        return Shout(request_id=request.request_id, model_name="m", value=1)


class Talk(NumberRequest):
    model_type: str = "talk"


@pytest.mark.usefixtures("own_contracts")
def test_an_answer_that_brings_such_a_field_itself_ends_the_job(write_rows, tmp_path):
    sd.register_contract("talk", Talk, Open)
    source = write_rows([1, 2], model_type="talk", sku="theirs")
    model = sd.ModelSpec(name="m", model_type="talk", backend=f"{__name__}:Talkative")

    with pytest.raises(
        sd.ResponseMismatchError, match="line 1: the answer already has a field 'sku'"
    ):
        run(spec(source, tmp_path, compute="local", keep=["sku"]), model)


class Whisper(NumberRequest):
    model_type: str = "shout"


@pytest.mark.usefixtures("own_contracts")
def test_an_answer_that_is_no_object_has_no_room_for_fields(write_rows, tmp_path):
    sd.register_contract("shout", Whisper, Shout)
    source = write_rows([1, 2], model_type="shout", sku="theirs")
    model = sd.ModelSpec(name="m", model_type="shout", backend=f"{__name__}:Shouter")

    with pytest.raises(sd.PredictError, match=r"line 1: .* it is not a JSON object"):
        run(spec(source, tmp_path, compute="local", keep=["sku"]), model)
