"""Locks of sinks as they lie in a store, and jobs that fight for one."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

from sheaf_dagster import SinkBusyError
from sheaf_dagster.storage import HeldSink, Sink, store_at


def lock_of(sink: Sink):
    """Where a sink's lock lies."""
    return store_at(sink.aside.child("lock"))


def told(sink: Sink) -> dict:
    """What the lock says."""
    return json.loads(lock_of(sink).read())


def foreign(sink: Sink, **fields) -> None:
    """Another machine's lock."""
    state = {"lease": "theirs", "process": "p", "host": "elsewhere", "pid": 1, "beat": 0, "at": 0.0}
    lock_of(sink).write(json.dumps({**state, **fields}).encode())


def taken_together(sinks: Sequence[Sink]) -> tuple[list[HeldSink], list[SinkBusyError]]:
    """The holds of jobs that take their sinks at the same time, and how others were refused."""
    held, refused = [], []

    def take(sink: Sink) -> None:
        try:
            held.append(sink.hold())
        except SinkBusyError as e:
            refused.append(e)

    threads = [threading.Thread(target=take, args=(s,)) for s in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return held, refused
