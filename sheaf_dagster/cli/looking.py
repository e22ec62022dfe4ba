"""The commands that look at a finished file: report, verify."""

from __future__ import annotations

import webbrowser
from pathlib import Path

import click

from sheaf_dagster.batch.receipt import read_receipt
from sheaf_dagster.batch.report import local_report
from sheaf_dagster.batch.verification import Verification
from sheaf_dagster.batch.verification import verify as verify_receipt
from sheaf_dagster.cli.app import assignment, command, imports, json_option, main, storage_option
from sheaf_dagster.cli.output import FAILED, OK, print_json, print_table

__all__: list[str] = []


@main.command()
@click.argument("sink", metavar="SINK")
@storage_option
@click.option(
    "--path", "only_path", is_flag=True, help="Print the location of the page. Open nothing."
)
@command
def report(sink: str, options: tuple[str, ...], only_path: bool) -> int:
    """Open the page about a finished file in a browser.

    SINK is the file of answers, or the page itself. A page in a remote store is copied to a
    temporary folder first.
    """
    path = local_report(sink, dict(assignment("--storage-option", o) for o in options))
    click.echo(path)
    if not only_path and not webbrowser.open(Path(path).as_uri()):
        click.echo("No browser was found; open that file yourself.", err=True)
    return OK


@main.command()
@click.argument("receipt", metavar="RECEIPT")
@click.option(
    "--sample", type=click.IntRange(min=1), default=20, show_default=True,
    help="The most chunks to run again. It has no effect on a Parquet file of answers, which is always "
    "made again as a whole.",
)  # fmt: skip
@click.option(
    "--seed",
    type=int,
    help="Seed that chooses the chunks. To run the chunks of an earlier verification again, give the seed "
    "that it printed.",
)
@storage_option
@imports
@json_option
@command
def verify(
    receipt: str, sample: int, seed: int | None, options: tuple[str, ...], as_json: bool
) -> int:
    """Compare a file of answers with its receipt, and run some of its chunks again.

    RECEIPT is the receipt, or the file of answers. The model runs in this process, on random chunks
    (--sample). A Parquet file of answers is compared as a whole, so all of its rows are run.

    The exit code is 0 if source, output and weights match the receipt and the answers have the same
    bytes, and 1 otherwise. Changed code and packages are reported, but don't change the exit code.
    """
    storage_options = dict(assignment("--storage-option", o) for o in options)
    found = verify_receipt(
        read_receipt(receipt, storage_options),
        sample,
        seed=seed,
        storage_options=storage_options,
    )
    if as_json:
        print_json({"ok": found.ok, **found.model_dump(mode="json")})
    else:
        _tell(found)
    return OK if found.ok else FAILED


def _tell(found: Verification) -> None:
    words = {True: "same", False: "DIFFERENT", None: "not known"}
    print_table(("WHAT", "IS", "FOUND"), [(f.what, words[f.same], f.says) for f in found.findings])
    verdict = "verified" if found.ok else "NOT verified"
    click.echo(f"{found.sink}: {verdict} (seed {found.seed})")
