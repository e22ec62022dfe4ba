"""A backend in stages: rows are prepared ahead of the device, and answered behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from sheaf_dagster.batch.messages import ChunkReport
from sheaf_dagster.batch.worker.device import Device, Doubt
from sheaf_dagster.batch.worker.files import Files
from sheaf_dagster.batch.worker.making import Batch
from sheaf_dagster.batch.worker.overlap import Behind, Helpers, InModelThread, Prefetched, in_turns
from sheaf_dagster.batch.worker.planning import plans_for
from sheaf_dagster.batch.worker.preparing import BYTES_AHEAD, Preparing

__all__ = ["run_in_stages"]


_BATCHES_AHEAD = 8
_PLANS_AHEAD = 2
_BATCHES_BEHIND = 4


def run_in_stages(
    files: Files,
    batches: Iterator[Batch],
    stop: Callable[[], bool],
    in_model_thread: InModelThread,
    threads: int,
    bytes_ahead: int = BYTES_AHEAD,
) -> Iterator[ChunkReport]:
    """Runs batches through ``prepare``, ``infer`` and ``respond``; yields the reports.

    Args:
        files: The files.
        batches: Their batches, or windows where batches are taken by size.
        stop: Whether to end early.
        in_model_thread: Makes a call from the thread of the backend's own calls.
        threads: Threads that prepare.
        bytes_ahead: About what prepared rows may take.
    """
    writer: Behind[ChunkReport | Doubt | None] = Behind(_BATCHES_BEHIND)
    with (
        writer,
        Helpers(threads) as helpers,
        closing(Preparing(files, helpers, bytes_ahead)) as preparing,
        Prefetched(preparing.windows(batches), _BATCHES_AHEAD) as ahead,
        Prefetched(plans_for(files, preparing, ahead), _PLANS_AHEAD) as plans,
        closing(preparing),  # again, so that these threads don't wait for room
        closing(Device(files, preparing, writer)) as device,
    ):
        while not (stop() or plans.ended):
            plan = plans.take()
            preparing.awaited(plan is None)
            yield from device.heard(writer.done())
            if plan is not None:
                yield from in_turns(in_model_thread, device.steps(plan, plans), stop)
        if plans.ended:
            while writer:
                yield from device.heard(writer.rest())
