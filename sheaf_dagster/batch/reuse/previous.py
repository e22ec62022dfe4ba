"""Keeping the answers of an earlier output for rows of equal content; see ``Keeper``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np

from sheaf_dagster.batch.fingerprint import contract_digest
from sheaf_dagster.batch.kept import Table, repeat_rows, table_of
from sheaf_dagster.batch.reuse.digests import Repeats, RowDigests
from sheaf_dagster.batch.reuse.index import AnswerIndex, IndexDamagedError, index_of, open_index
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import SourceError
from sheaf_dagster.storage import Chunk, Location, store_at
from sheaf_dagster.storage.formats import is_table
from sheaf_dagster.version import __version__

__all__ = ["ReusedAnswers", "made_by", "reused_output"]

log = logging.getLogger(__name__)

_FORM = "form of the output"
"""Lines of JSON have none: earlier versions wrote nothing else."""


def reused_output(spec: BatchSpec) -> Location | None:
    """The output whose answers a file reuses, whether it exists or not; None: it reuses none."""
    if spec.reuse_from is not None:
        return Location.of(spec.reuse_from, spec.storage_options)
    return Location.of(spec.sink, spec.storage_options) if spec.reuse == "previous" else None


def made_by(context: ModelContext, spec: BatchSpec) -> dict[str, str]:
    """What decides the answer to a content, by name; answers of another one aren't reused."""
    written = {_FORM: f"table of {spec.float_type}"} if is_table(spec.sink) else {}
    return {
        **written,
        "model": context.version,
        "contract": contract_digest(context.rows.request, context.rows.response),
        "fields that travel along (keep)": ", ".join(spec.keep),
        "version of sheaf_dagster": __version__,
    }


class ReusedAnswers:
    """Keeps the answers that an earlier output has to the same content; see ``Keeper``.

    Args:
        output: The earlier output.
        digests: Of the source's rows.
        made_by: What would make their answers now.
        repeats: Run rows of equal content once.
        named: The output was named (``reuse_from``), so that there should be one.
    """

    proven = True
    checked = True

    def __init__(
        self,
        output: Location,
        digests: RowDigests,
        made_by: dict[str, str],
        *,
        repeats: bool,
        named: bool,
    ) -> None:
        state = store_at(output).state()
        if state is None and named:
            log.warning("reuse_from: %s doesn't exist, so all rows are run", output.uri)
        known = "nothing" if state is None else f"{output.uri}:{state.size}:{state.version}"
        self.identity = f"reused from {known}"
        self._digests = digests
        self._repeats = repeats
        self._opened = ExitStack()
        self._index = None if state is None else self._open(output, made_by)
        self.output = None if self._index is None else output

    def _open(self, output: Location, made_by: dict[str, str]) -> AnswerIndex | None:
        """The index of the earlier output, if there is one that is of use."""
        lies = index_of(output)
        anew = "All rows are run, and the index is rebuilt"
        try:
            index = self._opened.enter_context(open_index(lies))
        except (IndexDamagedError, SourceError) as e:
            why = "is damaged" if isinstance(e, IndexDamagedError) else "can't be read"
            log.warning("%s %s, so it isn't used: %s. %s", lies.uri, why, e, anew)
            return None
        if index is None:
            log.warning(
                "%s has no index beside it (%s), so its answers can't be reused. %s",
                output.uri,
                lies.name,
                anew,
            )
            return None
        then = index.head.made_by
        if then != made_by:
            names = [n for n in {**made_by, **then} if made_by.get(n) != then.get(n)]
            if names == [_FORM] and _FORM not in then:
                return index  # lines say all that a table can say
            log.warning(
                "%s: its answers aren't reused, because these have changed since: %s. %s",
                output.uri,
                ", ".join(names),
                anew,
            )
            return None
        return index

    def check_unchanged(self) -> None:
        """Nothing to compare: each answer was looked at when it was taken."""

    def tables(
        self, chunks: Sequence[Chunk], text: Location | None, stop: threading.Event | None
    ) -> Iterator[Table]:
        """The tables, chunk by chunk."""
        with self._opened:
            repeats = Repeats(self._digests, chunks) if self._repeats else None
            for chunk in chunks:
                if stop is not None and stop.is_set():
                    raise InterruptedError("the job was stopped")
                digests = self._digests.of(chunk)
                if self._index is None or text is None:
                    nothing = np.zeros(chunk.rows, dtype=np.uint32)
                    table = table_of(nothing, nothing)
                else:
                    table = table_of(*self._index.places(digests))
                if repeats is not None:
                    rows, firsts = repeats.of(chunk)
                    new = table["length"][rows] == 0
                    repeat_rows(table, rows[new], firsts[new])
                yield table
