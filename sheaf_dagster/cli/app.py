"""The program, and what its commands have in common."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from sheaf_dagster.cli.output import code_of, tell_error
from sheaf_dagster.errors import SheafError
from sheaf_dagster.version import __version__

__all__ = [
    "assignment",
    "command",
    "import_modules",
    "imports",
    "json_option",
    "main",
    "quiet_option",
    "storage_option",
]

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sheaf-dagster")
def main() -> None:
    """Run models over files of rows, without Dagster.

    Exit codes: 0: done. 1: the job failed. 2: the command, spec or limits can't work. 3: rows don't
    match their contract. 4: the job failed for a temporary reason; run it again. 130 and 143: the
    job was interrupted; finished parts are kept.
    """


def imports(function: F) -> F:
    """The option that imports a user's modules before the command looks anything up."""

    def load(_: click.Context, __: click.Parameter, modules: tuple[str, ...]) -> tuple[str, ...]:
        import_modules(modules)
        return modules

    return click.option(
        "--import",
        "imports",
        multiple=True,
        metavar="MODULE",
        callback=load,
        is_eager=True,
        expose_value=False,
        help="Python module to import first, because it registers contracts or backends. It must be "
        "installed or in the current folder. May be given several times.",
    )(function)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to stdout, for scripts."
)
storage_option = click.option(
    "--storage-option", "-o", "options", multiple=True, metavar="NAME=VALUE",
    help="Argument of the fsspec file system, such as endpoint_url. Credentials come from the "
    "environment.",
)  # fmt: skip
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress on stderr.")


def command(function: F) -> F:
    """Turns what ends a command into a message and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            code = function(*args, **kwargs)
        except SheafError as e:
            tell_error(e, as_json=as_json)
            code = code_of(e)
        sys.exit(code)

    return wrapped  # type: ignore[return-value]


def import_modules(modules: Sequence[str]) -> None:
    """Imports a user's modules, from the folder that the command runs in or installed.

    Raises:
        click.UsageError: One can't be imported.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as e:
            if isinstance(e, SheafError):
                raise click.UsageError(f"module {module}: {e}") from e
            raise click.UsageError(
                f"module {module} can't be imported: {type(e).__name__}: {e}"
            ) from e


def assignment(option: str, text: str, *, typed: bool = True) -> tuple[str, Any]:
    """The name and the value of ``NAME=VALUE``.

    Args:
        option: Which option it is, for the error.
        text: What was written.
        typed: Read the value as JSON where it is some.

    Raises:
        click.UsageError: It has another form.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise click.UsageError(f"{option} {text!r}: must have the form NAME=VALUE")
    if not typed:
        return name, value
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
