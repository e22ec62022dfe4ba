"""What the device does with each batch of a backend in stages, found out in a thread ahead of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field

from sheaf_dagster.batch.rows.row import Row, named_lines
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.making import Batch
from sheaf_dagster.batch.worker.memory import is_out_of_memory
from sheaf_dagster.batch.worker.overlap import Prefetched
from sheaf_dagster.batch.worker.predict import ErrorLine
from sheaf_dagster.batch.worker.preparing import Preparing, Ready, Window, prepared
from sheaf_dagster.batch.worker.tally import Tally
from sheaf_dagster.errors import SheafError

__all__ = ["Plan", "plans_for", "with_room"]


@dataclass(frozen=True)
class Plan:
    """What the device is to do with a batch, or with a window of which it makes batches by size."""

    batch: Batch
    rows: list[Row] = field(default_factory=list)
    """Those that could be prepared; the largest first, in a window."""
    ready: dict[int, Ready] | None = None
    """What was made of them, by position; None where all stages are done in one go."""
    errors: tuple[Sequence[Row], Sequence[ErrorLine], Tally] | None = None
    """Of the others."""
    failure: Exception | None = None
    """What ends the file instead."""
    hangs: bool = False
    """Whether a row was not prepared in time."""
    lacks_room: bool = False
    """Whether memory ran out for a row, beside others and the device: there is more once they rest."""


def plans_for(files: Files, preparing: Preparing, windows: Prefetched[Window]) -> Iterator[Plan]:
    """Plans for the windows, once they are prepared: all that needs no device, in a thread ahead."""
    while not (windows.ended or preparing.closed):
        window = windows.take()
        if window is None:
            continue
        hangs = False
        while not (preparing.is_done(window) or hangs or preparing.closed):
            hangs = preparing.is_hanging(window)
        batch = window.batch
        if batch.failure is not None or not window.slices or files.has_failed(batch.making.work):
            yield Plan(batch, failure=batch.failure)
        elif hangs and wait(window.slices, 0).not_done:
            preparing.leave_behind()
            yield Plan(batch, hangs=True)
        elif not preparing.closed:
            try:
                yield _planned(files, batch, preparing.take(window))
            except Exception as e:
                yield Plan(batch, failure=e)


def with_room(files: Files, plan: Plan) -> Plan:
    """A plan that lacked room, after another try; nothing is to run on the device meanwhile."""
    backend, ready = files.loaded.backend, dict(plan.ready or {})
    try:
        for row in plan.batch.rows:
            if _lacks_room(ready[row.position]):
                ready[row.position] = prepared(backend, [row]).ready[0]
        return _planned(files, plan.batch, ready, has_room=True)
    except Exception as e:
        return Plan(plan.batch, failure=e)


def _lacks_room(made: Ready) -> bool:
    return made.error is not None and is_out_of_memory(made.error)


def _planned(
    files: Files, batch: Batch, ready: dict[int, Ready], *, has_room: bool = False
) -> Plan:
    """A plan for the rows that could be prepared; the errors of the others."""
    making, predictor = batch.making, files.predictor(batch.making)
    good: list[Row] = []
    failed: list[tuple[Row, ErrorLine]] = []
    for row in batch.rows:
        made = ready[row.position]
        if made.error is None:
            good.append(row)
        elif _lacks_room(made) and not has_room:
            return Plan(batch, ready=ready, lacks_room=True)
        elif isinstance(made.error, SheafError):
            raise made.error
        elif making.work.on_error == "fail":
            raise predictor.failure(named_lines(predictor.where, [row]), made.error, row.request)
        else:
            failed.append((row, predictor.error(row, made.error)))
    if making.work.window is not None:
        # The largest come first: whether they fit is known at once. Equal ones are as in the file.
        good.sort(key=lambda row: -ready[row.position].size)
    if not failed:
        return Plan(batch, good, ready)
    rows, lines = zip(*failed, strict=True)
    return Plan(batch, good, ready, (rows, lines, predictor.tally))
