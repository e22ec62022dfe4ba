"""What this library reaches for inside of pydantic is still there, and is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import core_schema

from sheaf_dagster.batch.rows import inside
from sheaf_dagster.batch.rows.fast import fast_codec
from sheaf_dagster.batch.rows.general import GeneralCodec
from sheaf_dagster.contracts import (
    EmbeddingResponse,
    TabularRequest,
    TextRequest,
    TimeSeriesRequest,
)


class Part(BaseModel):
    size: int


class Whole(BaseModel):
    kind: Literal["a", "b"] = "a"
    part: Part | None = None
    sizes: list[float] = []  # noqa: RUF012  (pydantic copies it)


LINE = b'{"part":{"size":1,"colour":"red"},"sizes":[1.5],"kind":"b"}'


def test_a_models_own_reader_and_writer_do_what_its_methods_do():
    row = inside.json_reader(Whole)(LINE)

    assert row == Whole.model_validate_json(LINE)
    assert inside.json_writer(Whole)(row) == row.model_dump_json().encode()
    with pytest.raises(ValidationError):
        inside.json_reader(Whole)(b'{"kind":"c"}')


def test_a_made_row_is_one_that_was_read():
    read = Whole.model_validate_json(b'{"kind":"b"}')

    made = inside.maker(Whole)({"kind": "b", "part": None, "sizes": []}, {"kind": "b"})

    assert made == read
    assert vars(made) == vars(read)
    for slot in BaseModel.__slots__:  # a new one would have to be set, too
        if slot != "__dict__":
            assert getattr(made, slot) == getattr(read, slot), slot
    assert inside.given_fields(made) == made.model_fields_set == {"kind"}
    assert made.model_copy(update={"kind": "a"}).model_dump_json() == Whole().model_dump_json()


def test_a_changed_schema_of_a_class_within_another_is_what_reads():
    # By default pydantic puts the class's own validator in its place, without a word.
    schema = _keeping_all(inside.core_schema_of(Whole))

    row = inside.json_reader_of_schema(schema)(LINE)

    assert inside.extra_of(row.part) == {"colour": "red"}
    assert inside.extra_of(Whole()) == {}


def _keeping_all(node: Any) -> Any:
    if isinstance(node, list):
        return [_keeping_all(part) for part in node]
    if not isinstance(node, dict):
        return node
    new = {k: v if k in inside.NO_SCHEMAS else _keeping_all(v) for k, v in node.items()}
    return {**new, "extra_behavior": "allow"} if node.get("type") == "model-fields" else new


def test_core_schemas_are_built_as_they_are_walked():
    kinds = [node["type"] for node in inside.schemas_in(inside.core_schema_of(Whole))]

    assert kinds.count("model") == 2
    assert sorted(set(kinds)) == [
        "default", "float", "int", "list", "literal", "model", "model-field", "model-fields",
        "nullable",
    ]  # fmt: skip
    known = set().union(*(vars(s).get("__annotations__", {}) for s in _SCHEMAS))
    assert known >= inside.NO_SCHEMAS - {"members"}


_SCHEMAS = (
    core_schema.ModelSchema,
    core_schema.ModelFieldsSchema,
    core_schema.WithDefaultSchema,
    core_schema.LiteralSchema,
    core_schema.AfterValidatorFunctionSchema,
)


WORDS = {
    core_schema.ModelSchema: """
        type cls generic_origin schema custom_init root_model post_init revalidate_instances strict
        frozen extra_behavior config ref metadata serialization
    """,
    core_schema.ModelFieldsSchema: """
        type fields model_name computed_fields strict extras_schema extras_keys_schema
        extra_behavior from_attributes ref metadata serialization
    """,
    core_schema.ModelField: """
        type schema validation_alias serialization_alias serialization_exclude
        serialization_exclude_if frozen metadata
    """,
}


@pytest.mark.parametrize("schema", WORDS)
def test_no_word_of_a_models_schema_is_new(schema):
    # A new one may change what is written. Look what it does: ``plain.py`` refuses words that it
    # doesn't know, ``fast.py`` must be told.
    assert sorted(schema.__annotations__) == sorted(WORDS[schema].split())


@pytest.mark.parametrize("contract", [TimeSeriesRequest, TabularRequest, TextRequest])
def test_the_built_in_contracts_are_still_plain(contract):
    # Else they are read by pydantic alone, correctly, and at half the rate.
    rows = {
        TimeSeriesRequest: b'{"model_name":"m","history":[1,2],"horizon":1,"frequency":"1h"}',
        TabularRequest: b'{"model_name":"m","context_X":[[1]],"context_y":[1],"query_X":[[1]]}',
        TextRequest: b'{"model_name":"m","text":"hello"}',
    }

    assert fast_codec(contract).read(rows[contract]) is not None
    assert fast_codec(TimeSeriesRequest).fields(rows[TimeSeriesRequest])


def test_built_in_answers_are_still_written_fast():
    answer = EmbeddingResponse(request_id=uuid4(), model_name="m", embeddings=[[1.5]], dim=1)

    written = fast_codec(EmbeddingResponse).write([answer])

    assert written == GeneralCodec(EmbeddingResponse).write([answer])


def test_the_errors_whose_text_may_quote_a_row_are_still_called_so():
    assert {"value_error", "assertion_error", "json_invalid", "missing"} <= inside.ERROR_TYPES
    assert any(name.endswith("_parsing") for name in inside.ERROR_TYPES)


@pytest.mark.parametrize("known", inside.__all__)
def test_each_reach_has_a_test_here(known):
    assert f"inside.{known}" in Path(__file__).read_text(encoding="utf-8")


def test_nobody_else_reaches_into_pydantic():
    package = Path(inside.__file__).parents[2]
    found = [
        path.name
        for path in package.rglob("*.py")
        if path.name != "inside.py"
        and any(w in path.read_text(encoding="utf-8") for w in ("__pydantic_", "SchemaValidator"))
    ]
    assert found == []
