"""A job that runs rows into one sink, again and again, and counts those that reach the model."""

from __future__ import annotations

import json

from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.storage import Location, read_lines
from tests.toys import shaped

ROWS = [{"model_type": "number", "model_name": "m", "value": v} for v in range(120)]


class Job:
    """Runs rows into one sink; counts the rows that reach the model."""

    def __init__(self, tmp_path, sink="out.jsonl", **fields):
        self.folder = tmp_path
        self.sink = str(tmp_path / "out" / sink)
        self.fields = {"compute": "local", "batch_size": 8, "reuse": "previous", **fields}
        self.calls = tmp_path / "calls"
        self.model = None

    def run(self, rows, shape="call", model=None, **fields):
        text = rows if isinstance(rows, str) else "".join(json.dumps(r) + "\n" for r in rows)
        (self.folder / "in.jsonl").write_text(text)
        self.calls.unlink(missing_ok=True)
        spec = BatchSpec(
            source=str(self.folder / "in.jsonl"), sink=self.sink, **{**self.fields, **fields}
        )
        spec_of_model = self.model or shaped(shape, call_log=str(self.calls), **(model or {}))
        return BatchRunner(spec_of_model, on_progress=None).run(spec)

    @property
    def ran(self):
        return sum(map(int, self.calls.read_text().split())) if self.calls.exists() else 0

    @property
    def answers(self):
        return [json.loads(line) for _, line in read_lines(Location.of(self.sink))]


def doubled(rows):
    return [2 * row["value"] for row in rows]


def values(answers):
    return [answer["value"] for answer in answers]
