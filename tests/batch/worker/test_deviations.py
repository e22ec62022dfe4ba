"""Rows that are answered otherwise than asked are counted, in the row, the result and after a resume."""

from __future__ import annotations

import json

import pytest

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.storage import Part
from tests.toys import Doubler


class Deviant(Doubler):
    """Falls back on negative values and truncates above a hundred; fails once where told."""

    def batch_predict(self, requests):
        answers = super().batch_predict(requests)
        for request, answer in zip(requests, answers, strict=True):
            if request.value < 0:
                answer.deviates("fell_back")
            if abs(request.value) > 100:
                answer.deviates("truncated")
        return answers


MODEL = ModelSpec(
    name="m", model_type="number", backend="tests.batch.worker.test_deviations:Deviant"
)


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


def test_counts_survive_in_the_name_of_a_part():
    part = Part(3, 10, 1, 0, 99, "ab", {"f": 2, "t": 11})

    assert Part.from_name(part.name) == part
    assert Part.from_name(Part(3, 10, 1, 0, 99).name) == Part(3, 10, 1, 0, 99)
