"""Rows that are answered otherwise than asked are counted, in the row, the result and after a resume."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ConfigDict

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.storage import Part
from tests.toys import Doubler

MODEL = ModelSpec(name="m", model_type="number", backend="tests.toys:Deviant")


@pytest.mark.parametrize("bucket_by", [None, "group"])
def test_deviations_are_counted_by_kind_and_stand_in_their_rows(tmp_path, bucket_by):
    source = tmp_path / "in.jsonl"
    values = [1, -2, 3, 400, -500, 6]
    source.write_text(
        "".join(
            json.dumps({"model_name": "m", "value": v, "group": i % 2}) + "\n"
            for i, v in enumerate(values)
        )
    )

    result = BatchRunner(MODEL).run(
        BatchSpec(
            source=str(source),
            sink=str(tmp_path / "out.jsonl"),
            compute="local",
            batch_size=2,
            bucket_by=bucket_by,
        )
    )

    assert result.deviations == {"fell_back": 2, "truncated": 2}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["metadata"].get("deviations") for r in rows] == [
        None,
        ["fell_back"],
        None,
        ["truncated"],
        ["fell_back", "truncated"],
        None,
    ]


class Extra(BaseModel):
    """Its metadata is no field."""

    model_config = ConfigDict(extra="allow")
    value: float


class Own(BaseModel):
    """Its metadata is made when it is asked for, and it says what tokens it took."""

    value: float

    @property
    def metadata(self):
        return {"deviations": ["clipped"]}

    def token_usage(self):
        return {"prompt_tokens": 3, "completion_tokens": 2}


class Answering(Doubler):
    """Answers with classes that are no ``BaseResponse``, some of them in the same batch."""

    def batch_predict(self, requests):
        kinds = {
            0: lambda value: Extra(value=value, metadata={"deviations": ["fell_back"]}),
            1: lambda value: Own(value=value),
        }
        plain = super().batch_predict(requests)
        return [kinds.get(int(a.value / 2) % 3, lambda _, a=a: a)(a.value) for a in plain]


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_whatever_the_class_of_a_response_its_deviations_and_tokens_are_counted(
    tmp_path, write_rows, batch_size
):
    spec = BatchSpec(
        source=write_rows(list(range(9))),
        sink=str(tmp_path / "out.jsonl"),
        compute="local",
        batch_size=batch_size,
    )

    result = BatchRunner(MODEL.model_copy(update={"backend": f"{__name__}:Answering"})).run(spec)

    assert result.deviations == {"fell_back": 3, "clipped": 3}
    assert (result.tokens["prompt"], result.tokens["output"]) == (9, 6)


def test_counts_survive_in_the_name_of_a_part():
    part = Part(3, 10, 1, 0, 99, "ab", {"f": 2, "t": 11})

    assert Part.from_name(part.name) == part
    assert Part.from_name(Part(3, 10, 1, 0, 99).name) == Part(3, 10, 1, 0, 99)
