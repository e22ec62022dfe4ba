"""The commands about jobs: validate, run, estimate."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, get_args

import click
from pydantic import ValidationError

from sheaf_dagster.batch.estimate import Past, estimate_job
from sheaf_dagster.batch.job_file import JobFile
from sheaf_dagster.batch.model_spec import ModelSpec, problems_of
from sheaf_dagster.batch.progress import OnProgress, progress_bar, progress_lines
from sheaf_dagster.batch.report import remove_report, write_report
from sheaf_dagster.batch.results import BatchOutcome, BatchProgress
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.batch.spec import BatchOptions, BatchSpec, Only, Reuse
from sheaf_dagster.batch.validation import validate_files
from sheaf_dagster.cli.app import (
    assignment,
    command,
    import_modules,
    imports,
    json_option,
    main,
    quiet_option,
    storage_option,
)
from sheaf_dagster.cli.output import (
    INTERRUPTED,
    INVALID,
    OK,
    TERMINATED,
    code_of,
    estimate_rows,
    print_json,
    print_table,
    report_fields,
    tell_outcome,
    valid_line,
)
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.errors import (
    SheafError,
    SpecError,
)
from sheaf_dagster.report import require_bokeh

__all__: list[str] = []


class _TerminatedError(BaseException):
    """SIGTERM, on its way out of whatever was running."""


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--model-type", required=True, help="Contract of the rows; see `contracts`.")
@storage_option
@click.option(
    "--column", "columns", multiple=True, metavar="FIELD=COLUMN",
    help="Read a field from a column of another name, such as history=sales.",
)  # fmt: skip
@click.option(
    "--field", "fields", multiple=True, metavar="FIELD=VALUE",
    help="Set a field to the same value in every row, such as horizon=7.",
)  # fmt: skip
@click.option("--row-limit", type=click.IntRange(min=1), help="Validate only the first rows.")
@click.option(
    "--show", type=click.IntRange(0, 100), default=20, show_default=True,
    help="The most violations to show for each file.",
)  # fmt: skip
@click.option("--redact", is_flag=True, help="Show no values of rows.")
@imports
@json_option
@quiet_option
@command
def validate(
    files: tuple[str, ...],
    model_type: str,
    options: tuple[str, ...],
    columns: tuple[str, ...],
    fields: tuple[str, ...],
    row_limit: int | None,
    show: int,
    redact: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Validate every row of the files. Load no model and write nothing.

    FILE is a path or an fsspec URI such as s3://bucket/key. It names a file of JSON lines (also .gz
    and .zst), a .parquet file, or a folder of such files.
    """
    contract = RowContract.of(contract_for(model_type), redact=redact)
    storage_options = dict(assignment("--storage-option", o) for o in options)
    try:
        mapped = BatchOptions(
            columns=dict(assignment("--column", c, typed=False) for c in columns) or None,
            fields=dict(assignment("--field", f) for f in fields) or None,
        )
    except ValidationError as e:
        raise SpecError(problems_of(e)) from e
    code = OK
    for file in files:
        with _progress(f"validating {os.path.basename(file)}", quiet=quiet) as on_progress:
            report = validate_files(
                contract,
                [file],
                storage_options,
                options=mapped,
                row_limit=row_limit,
                on_progress=on_progress,
            )
        if not report.ok:
            code = INVALID
        if as_json:
            print_json({"ok": report.ok, **report_fields(report, show)})
        else:
            click.echo(report.summary(show) if not report.ok else valid_line(report))
    return code


@main.command()
@click.argument("spec", metavar="SPEC.yaml")
@click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE",
    help="Change a value of the spec, such as batch.batch_size=128. May be given several times.",
)  # fmt: skip
@click.option(
    "--only", type=click.Choice(get_args(Only)),
    help="failed: run only rows that have an error row in the last output. Keep all other answers.",
)  # fmt: skip
@click.option(
    "--reuse", type=click.Choice(get_args(Reuse)),
    help="previous: keep the last output's answers to unchanged rows. Run only the other rows.",
)  # fmt: skip
@click.option(
    "--reuse-from", metavar="PATH",
    help="Like --reuse, but take the answers from another output. PATH may also be an fsspec URI.",
)  # fmt: skip
@click.option("--check", is_flag=True, help="Read the spec and validate the rows. Run nothing.")
@click.option("--redact", is_flag=True, help="Show no values of rows in errors and in the report.")
@click.option(
    "--report", is_flag=True,
    help="Write a page about each file beside its sink. `report` opens the page. Needs "
    "sheaf_dagster[html].",
)  # fmt: skip
@imports
@json_option
@quiet_option
@command
def run(
    spec: str,
    changes: tuple[str, ...],
    only: Only | None,
    reuse: Reuse | None,
    reuse_from: str | None,
    check: bool,
    redact: bool,
    report: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run the job that a YAML file describes.

    \b
    model:                      # as ModelSpec
      name: forecaster
      model_type: time_series
      backend: statsforecast
    batch:                      # as BatchSpec, or a list of them
      source: requests.jsonl
      sink: forecasts.jsonl
      batch_size: 64
    cluster: {address: auto}    # as ClusterConfig; a local Ray by default
    imports: [my_models]        # modules that register contracts or backends

    Run a killed or interrupted job again to continue where it stopped.
    """  # noqa: D301  (\b keeps click from joining the lines)
    if report:
        require_bokeh("--report")
    job = JobFile.read(spec, dict(assignment("--set", c, typed=False) for c in changes))
    import_modules(job.imports)
    if only is not None:
        for batch in job.batches:
            batch.only = only
    if reuse is not None or reuse_from is not None:
        job.batch = [_reusing(batch, reuse, reuse_from) for batch in job.batches]
    progress = _progress(job.model.name, quiet=quiet, files=len(job.batches))
    with progress as on_progress:
        done = _Done(on_progress)
        runner = BatchRunner(job.model, job.cluster, done.take, redact_rows=redact)
        if check:
            return _check(runner, job, as_json=as_json)
        pages = _Pages(job.model, redact=redact) if report else None
        return _run(runner, job, done, pages, as_json=as_json)


def _reusing(batch: BatchSpec, reuse: Reuse | None, reuse_from: str | None) -> BatchSpec:
    """The same file, with what the command line says of reuse in place of what the spec says."""
    given = {**batch.model_dump(exclude_unset=True), "reuse": reuse, "reuse_from": reuse_from}
    try:
        return BatchSpec(**given)
    except ValidationError as e:
        raise SpecError(problems_of(e)) from e


def _check(runner: BatchRunner, job: JobFile, *, as_json: bool) -> int:
    code = OK
    for batch in job.batches:
        report = runner.validate(batch)
        code = code if report.ok else INVALID
        if as_json:
            print_json({"ok": report.ok, **report_fields(report, 20)})
        else:
            click.echo(valid_line(report) if report.ok else report.summary(20))
    return code


@main.command()
@click.argument("spec", metavar="SPEC.yaml")
@click.option(
    "--asset", metavar="KEY",
    help="Asset whose last materialisations give the rate and the number of tokens. They are read from "
    "the Dagster instance that DAGSTER_HOME names.",
)  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, metavar="PATH=VALUE",
    help="Change a value of the spec, such as batch.source=today.jsonl.",
)  # fmt: skip
@imports
@json_option
@command
def estimate(spec: str, asset: str | None, changes: tuple[str, ...], as_json: bool) -> int:
    """Estimate the rows, tokens, time and cost of the job in a YAML file. Run nothing.

    Prompt tokens are estimated from characters. Time and answer length come from the asset's last
    materialisations. The cost comes from batch.price_per_million.
    """
    job = JobFile.read(spec, dict(assignment("--set", c, typed=False) for c in changes))
    import_modules(job.imports)
    past: Sequence[Past] = ()
    if asset is not None:
        from sheaf_dagster.definitions.past_jobs import past_jobs  # loads dagster

        past = past_jobs(asset)
    contract = RowContract.of(contract_for(job.model.model_type))
    found = estimate_job(contract, job.batches, past)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_table(("WHAT", "ABOUT"), estimate_rows(found, asset))
    return INVALID if found.invalid_rows else OK


class _Done:
    """Remembers how far a job came, for what is said when it is interrupted."""

    def __init__(self, then: OnProgress | None) -> None:
        self._then = then
        self.rows = 0

    def take(self, progress: BatchProgress) -> None:
        self.rows = progress.rows_done
        if self._then is not None:
            self._then(progress)


class _Pages:
    """Writes a page about each file that is done."""

    def __init__(self, model: ModelSpec, *, redact: bool) -> None:
        self._model = model
        self._redact = redact

    def take(self, outcome: BatchOutcome) -> None:
        if outcome.result is None:
            return
        try:
            write_report(outcome.result, outcome.spec, self._model, redact=self._redact)
        except SheafError as e:  # the file itself is committed
            remove_report(outcome.spec)
            click.echo(f"{outcome.spec.sink}: no report was written: {e}", err=True)


def _run(
    runner: BatchRunner, job: JobFile, done: _Done, pages: _Pages | None, *, as_json: bool
) -> int:
    codes: list[int] = []
    try:
        with _sigterm_raises(), closing(runner.run_many(job.batches)) as outcomes:  # type: ignore[type-var]
            for outcome in outcomes:
                tell_outcome(outcome, as_json=as_json)
                if pages is not None:
                    pages.take(outcome)
                codes.append(OK if outcome.error is None else code_of(outcome.error))
    except (KeyboardInterrupt, _TerminatedError) as e:
        left = len(job.batches) - len(codes)
        rows = f", about {done.rows:,} rows answered" if done.rows else ""
        again = (
            "run the same command again to continue"
            if all(b.resume for b in job.batches)
            else "but resume: false makes the next run start over"
        )
        click.echo(
            f"Interrupted: {left} of {len(job.batches)} files unfinished{rows}. No sink is "
            f"half-written. Finished parts are kept beside the sinks: {again}.",
            err=True,
        )
        code = INTERRUPTED if isinstance(e, KeyboardInterrupt) else TERMINATED
        if as_json:
            error = {"type": "Interrupted", "message": "interrupted", "retryable": True}
            print_json({"ok": False, "exit_code": code, "error": error})
        return code
    failed = sorted(set(codes) - {OK})
    if not failed:
        return OK
    # Of different failures, the one that a rerun doesn't mend is what a script must hear of.
    return failed[0]


@contextmanager
def _progress(title: str, *, quiet: bool, files: int = 1) -> Iterator[OnProgress | None]:
    """A bar in a terminal, a line every ten seconds elsewhere."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with progress_bar(title, files=files) as bar:
            yield bar
    else:
        yield progress_lines(lambda line: click.echo(f"{title}: {line}", err=True), files=files)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Lets a scheduler's SIGTERM end a job as Ctrl-C does: orderly, with its parts kept."""

    def end(*_: Any) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
