"""Validation shared with the workers that wait for it."""

from __future__ import annotations

import json
import threading

import pytest

from sheaf_dagster.batch import parallel_validation
from sheaf_dagster.batch.parallel_validation import validate_in_parallel
from sheaf_dagster.batch.ray.records import ValidationWork
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.storage import Location, scan_source
from tests.toys import doubler

pytestmark = pytest.mark.ray
BAD_LINES = {17, 4000, 9990}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [
        {"model_type": "number", "model_name": "m", "value": "x" if n in BAD_LINES else n}
        for n in range(1, 10_001)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return scan_source([Location.of(str(path))], 16)


@pytest.fixture
def coordinator(ray_cluster):
    from sheaf_dagster.batch.ray.client import start_coordinator

    return start_coordinator(2, "toy")


@pytest.fixture
def brought_back(monkeypatch):
    """Always offers; notes which chunks came back from others."""
    monkeypatch.setattr(parallel_validation, "_WORTH_SECONDS", 0.0)
    monkeypatch.setattr(parallel_validation, "_MEASURE_SECONDS", 0.0)
    chunks: list[int] = []
    taken = parallel_validation._Offers.taken

    def noted(self):
        found = taken(self)
        chunks.extend(found)
        return found

    monkeypatch.setattr(parallel_validation._Offers, "taken", noted)
    return chunks


def check(source, coordinator):
    contract = ModelContext.of(doubler()).rows
    texts = [f.text for f in source.files]
    shared = validate_in_parallel(
        contract, texts, source.chunks, lambda: (coordinator, 2), threading.Event()
    )
    return list(shared), list(validate_chunks(contract, texts, source.chunks))


def test_waiting_workers_check_and_the_findings_are_the_same_in_order(
    source, coordinator, brought_back, monkeypatch
):
    import ray

    from sheaf_dagster.batch.ray.worker import _pass_gate

    worker = ray.remote(_pass_gate).remote(coordinator.for_workers())
    nothing = [ray.put((ModelContext.of(doubler()).rows, [])), []]
    heard = coordinator.validate(ValidationWork(-1, nothing))
    assert heard.get() == [], "the worker is up and waits"
    here = parallel_validation.validate_chunks

    def slowly(contract, texts, chunks):  # so slow a driver that the worker must have its share
        threading.Event().wait(0.0 if brought_back else 0.3)
        return here(contract, texts, chunks)

    monkeypatch.setattr(parallel_validation, "validate_chunks", slowly)
    shared, alone = check(source, coordinator)
    coordinator.close()

    assert brought_back, "a worker helped"
    assert shared == alone
    lines = [v.line for c in shared for v in c.violations]
    assert set(lines) == BAD_LINES
    assert lines == sorted(lines)
    assert ray.get(worker) is False, "no file came"


def test_what_no_worker_takes_the_driver_does_itself(source, coordinator, brought_back):
    shared, alone = check(source, coordinator)

    assert shared == alone
    assert not brought_back
    assert sum(c.rows for c in shared) == source.rows


def test_a_stopped_job_stops_checking(source, coordinator):
    contract = ModelContext.of(doubler()).rows
    stop = threading.Event()
    stop.set()

    with pytest.raises(InterruptedError):
        list(
            validate_in_parallel(
                contract,
                [f.text for f in source.files],
                source.chunks,
                lambda: (coordinator, 2),
                stop,
            )
        )


def test_no_more_violations_are_held_than_are_shown(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"model_name": "m"}\n' * 20_000)
    source = scan_source([Location.of(str(path))], 16)
    contract = ModelContext.of(doubler()).rows

    checks = list(
        validate_in_parallel(
            contract,
            [f.text for f in source.files],
            source.chunks,
            lambda: None,
            threading.Event(),
        )
    )

    assert len(checks) > 3
    assert sum(c.total_violations for c in checks) == sum(c.invalid_rows for c in checks) == 20_000
    assert [v.line for c in checks for v in c.violations][:100] == list(range(1, 101))
    assert sum(len(c.violations) for c in checks) <= 200
