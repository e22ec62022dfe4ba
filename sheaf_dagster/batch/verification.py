"""Whether a file is still what its receipt says: digests, then some chunks made again."""

from __future__ import annotations

import importlib
import platform
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from sheaf_dagster.batch.events import Event, Reported, WorkFailed
from sheaf_dagster.batch.file_run import FileRun
from sheaf_dagster.batch.local import LocalWorkforce
from sheaf_dagster.batch.messages import ChunkReport, FileWork
from sheaf_dagster.batch.receipt import Receipt, code_digest, packages
from sheaf_dagster.batch.rows.chunk_validation import validate_chunks
from sheaf_dagster.batch.rows.findings import ChunkFindings
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import SheafError, SpecError
from sheaf_dagster.storage import Chunk, Location, ScannedSource, read_lines, source_digest
from sheaf_dagster.storage.formats import is_table
from sheaf_dagster.version import __version__

__all__ = ["Finding", "Verification", "verify"]

_NAMED = 5


class Finding(BaseModel):
    """One thing that was compared.

    Attributes:
        what: ``source``, ``output``, ``weights`` or ``answers``, which must be as the receipt
            says; ``code`` and ``packages``, whose changes are told and prove nothing.
        same: Whether it is as the receipt says; None where that can't be known.
        says: What was found.
    """

    what: Literal["source", "output", "weights", "code", "packages", "answers"]
    same: bool | None
    says: str


class Verification(BaseModel):
    """What came of comparing a file with its receipt.

    Attributes:
        sink: The file.
        findings: All that was compared, in order.
        chunks: Chunks of the file that a model answered.
        chunks_run: Those of them that were made again.
        rows_run: Their rows.
        seed: Chooses the same chunks again.
    """

    sink: str
    findings: list[Finding]
    chunks: int = 0
    chunks_run: int = 0
    rows_run: int = 0
    seed: int

    @property
    def ok(self) -> bool:
        """Whether nothing that decides is known to be different, and the answers are the same."""
        decisive = [f for f in self.findings if f.what not in ("code", "packages")]
        return all(f.same is not False for f in decisive) and decisive[-1].same is True


def verify(
    receipt: Receipt,
    sample: int = 20,
    *,
    seed: int | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Verification:
    """Compares source, output and weights with a receipt, then makes random chunks again.

    The chunks are run in this process, by the model that there is now, and compared byte by byte
    with what stands in the output. Nothing beside the file is touched.

    Args:
        receipt: The receipt.
        sample: How many chunks, at most.
        seed: Chooses them; by default at random.
        storage_options: Of the file systems of source and output.

    Raises:
        SpecError: The model can't be made here, or ``sample`` is below 1.
    """
    if sample < 1:
        raise SpecError(f"sample must be 1 chunk or more (got {sample})")
    options = storage_options or {}
    done = Verification(sink=receipt.sink, findings=[], seed=_any_seed() if seed is None else seed)
    context = _context(receipt)
    source = _digest("source", receipt.source, receipt.source_digest, options)
    output = _digest("output", [receipt.sink], receipt.output_digest, options)
    weights = _weights(receipt, context)
    done.findings = [source, output, weights, _code(receipt, context), _packages(receipt)]
    changed = [f.what for f in (source, weights) if f.same is False]
    if changed:
        said = f"not made again: {' and '.join(changed)} changed"
        done.findings.append(Finding(what="answers", same=None, says=said))
        return done
    try:
        answers = _answers(receipt, context, sample, options, done)
    except SpecError:
        raise
    except SheafError as e:
        answers = Finding(what="answers", same=False, says=f"{type(e).__name__}: {e}")
    done.findings.append(answers)
    return done


def _context(receipt: Receipt) -> ModelContext:
    for module in receipt.modules:
        if module != "__main__":
            try:
                importlib.import_module(module)
            except ImportError as e:
                raise SpecError(
                    f"module {module!r}, which the receipt of {receipt.sink} names, can't be "
                    f"imported: {e}; install it, or run this where it can be found"
                ) from e
    return ModelContext.of(receipt.model, redact=receipt.redact).identified()


def _digest(
    what: Literal["source", "output"], uris: Sequence[str], expected: str, options: dict[str, Any]
) -> Finding:
    named = uris[0] if len(uris) == 1 else f"{len(uris)} files, {uris[0]} to {uris[-1]}"
    try:
        found = source_digest(uris, options)
    except SheafError as e:
        return Finding(what=what, same=False, says=str(e))
    if found == expected:
        return Finding(what=what, same=True, says=f"{named} is unchanged ({found[:19]}…)")
    says = f"{named} changed: it is {found[:19]}…, and the receipt says {expected[:19]}…"
    return Finding(what=what, same=False, says=says)


def _weights(receipt: Receipt, context: ModelContext) -> Finding:
    return _compared_weights(receipt, context.identity)


def _compared_weights(receipt: Receipt, now: str | None) -> Finding:
    if now is None or receipt.weights is None:
        says = f"backend {receipt.model.backend} can't identify its weights"
        return Finding(what="weights", same=None, says=says)
    if now == receipt.weights:
        return Finding(what="weights", same=True, says=f"unchanged ({now})")
    says = f"changed: they are {now}, and the receipt says {receipt.weights}"
    return Finding(what="weights", same=False, says=says)


def _code(receipt: Receipt, context: ModelContext) -> Finding:
    now = code_digest(context.backend_cls, context.rows.request, context.rows.response)
    changes = [
        f"sheaf_dagster {receipt.sheaf_dagster}, now {__version__}"
        if receipt.sheaf_dagster != __version__
        else "",
        f"a source file of backend {receipt.model.backend} or of its contract changed"
        if now != receipt.code
        else "",
    ]
    said = "; ".join(filter(None, changes))
    return Finding(what="code", same=not said, says=said or "unchanged")


def _packages(receipt: Receipt) -> Finding:
    now = {"Python": platform.python_version(), **packages()}
    then = {"Python": receipt.python, **receipt.packages}
    names = sorted(n for n in then.keys() | now.keys() if then.get(n) != now.get(n))
    if not names:
        return Finding(what="packages", same=True, says=f"the same {len(now):,}")
    shown = [f"{n} {then.get(n, 'absent')}, now {now.get(n, 'absent')}" for n in names[:_NAMED]]
    more = f"; and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return Finding(what="packages", same=False, says=f"{'; '.join(shown)}{more}")


def _answers(
    receipt: Receipt,
    context: ModelContext,
    sample: int,
    options: dict[str, Any],
    done: Verification,
) -> Finding:
    """Makes some chunks again and compares them; of a table, which is one piece, all."""
    whole = is_table(receipt.sink)
    with tempfile.TemporaryDirectory(prefix="sheaf-verify-") as folder:
        again = str(Path(folder) / f"again{Path(receipt.sink).suffix if whole else '.jsonl'}")
        run = FileRun(0, receipt.spec(again, options), context)
        try:
            work, chunks = run.prepare(_validated)
            done.chunks = len(chunks)
            size = len(chunks) if whole else min(sample, len(chunks))
            chosen = random.Random(done.seed).sample(chunks, size)  # noqa: S311  (no secret)
            chosen.sort(key=lambda chunk: chunk.index)
            done.chunks_run, done.rows_run = len(chosen), sum(chunk.rows for chunk in chosen)
            made: dict[int, list[bytes]] = {}
            loaded: str | None = None
            for report in _run(context, work, chosen):
                loaded = report.model_digest or loaded
                if report.failure is not None:
                    raise report.failure.rebuilt()
                if whole or report.part is None:
                    run.take(report)
                else:
                    text = work.store.stored(report.part).read()
                    made[report.chunk] = text.rstrip(b"\n").split(b"\n")
            if whole:
                run.commit()
                same = source_digest(again) == source_digest(receipt.sink, options)
                different = "" if same else "this is a different file"
            else:
                sink = Location.of(receipt.sink, options)
                different = _named(_different(sink, chosen, made))
        finally:
            run.abandon()
    if context.identity is None:
        done.findings = [
            _compared_weights(receipt, loaded) if f.what == "weights" else f for f in done.findings
        ]
    if not chunks and not different:
        return Finding(what="answers", same=True, says="the model answered no row; nothing to run")
    of = f"{done.chunks_run:,} of {done.chunks:,} chunks ({done.rows_run:,} rows)"
    if not different:
        return Finding(what="answers", same=True, says=f"{of} made again, byte for byte the same")
    if run.spec.batch_size == "auto":
        different += '; batch_size="auto": a row\'s batch mates differ from run to run'
    if receipt.reused_rows:
        different += f"; {receipt.reused_rows:,} answers are of an earlier run"
    return Finding(what="answers", same=False, says=f"{of} made again, {different}")


def _run(context: ModelContext, work: FileWork, chunks: list[Chunk]) -> Iterator[ChunkReport]:
    heard: list[Event] = []
    workforce = LocalWorkforce(context)
    workforce.start(heard.append)
    workforce.submit(work, chunks)
    while workforce.look():
        for event in heard:
            if isinstance(event, WorkFailed):
                raise event.error
            if isinstance(event, Reported):
                yield event.report
        heard.clear()


def _named(rows: Sequence[int]) -> str:
    if not rows:
        return ""
    more = " …" if len(rows) > _NAMED else ""
    return f"{len(rows):,} rows differ: rows {', '.join(f'{r + 1:,}' for r in rows[:_NAMED])}{more}"


def _validated(contract: RowContract, source: ScannedSource) -> Iterator[ChunkFindings]:
    return validate_chunks(contract, [f.text for f in source.files], source.chunks)


def _different(sink: Location, chosen: Sequence[Chunk], made: dict[int, list[bytes]]) -> list[int]:
    """Positions of rows whose line in the output is another than the one that was made again."""
    expected = {
        chunk.first_row + i: line for chunk in chosen for i, line in enumerate(made[chunk.index])
    }
    missing = dict(expected)
    different = []
    for position, (_, line) in enumerate(read_lines(sink)):
        if position in missing and missing.pop(position) != line.rstrip(b"\n"):
            different.append(position)
        if not missing:
            break
    return sorted([*different, *missing])


def _any_seed() -> int:
    return random.randrange(2**31)  # noqa: S311  (chooses chunks)
