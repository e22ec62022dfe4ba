"""The commands that list what there is: backends, contracts."""

from __future__ import annotations

import json
from typing import Any

import click

from sheaf_dagster.backends import known_backends, resolve_backend
from sheaf_dagster.cli.app import command, imports, json_option, main
from sheaf_dagster.cli.output import OK, print_json, print_table
from sheaf_dagster.contracts import contract_for, known_model_types, schema_of
from sheaf_dagster.errors import SheafError

__all__: list[str] = []


@main.command()
@imports
@json_option
@command
def backends(as_json: bool) -> int:
    """List the backends that a spec can name, including those of installed packages."""
    rows: list[dict[str, Any]] = []
    for name in known_backends():
        try:
            cls = resolve_backend(name)
        except SheafError as e:
            rows.append({"name": name, "error": str(e)})
            continue
        served = cls.model_type
        types = [str(t) for t in ((served,) if isinstance(served, str) else served)]
        what = next(iter((cls.__doc__ or "").strip().splitlines()), "")
        path = f"{cls.__module__}:{cls.__qualname__}"
        rows.append({"name": name, "model_types": types, "class": path, "description": what})
    if as_json:
        print_json(rows)
        return OK
    print_table(
        ("NAME", "MODEL TYPE", "WHAT"),
        [
            (
                r["name"],
                ", ".join(r.get("model_types", ["?"])),
                r.get("error", r.get("description", "")),
            )
            for r in rows
        ],
    )
    return OK


@main.command()
@click.argument("model_type", metavar="[TYPE]", required=False)
@click.option("--response", is_flag=True, help="Print the schema of an answer instead of a row.")
@imports
@json_option
@command
def contracts(model_type: str | None, response: bool, as_json: bool) -> int:
    """Print the JSON schema of a model type's rows. Without TYPE, list the model types."""
    if model_type is not None:
        contract = contract_for(model_type)
        kind = contract.response if response else contract.request
        click.echo(json.dumps(schema_of(kind), indent=2, ensure_ascii=False))
        return OK
    rows = [
        (c.model_type, c.request.__name__, c.response.__name__)
        for c in map(contract_for, known_model_types())
    ]
    if as_json:
        print_json([dict(zip(("model_type", "request", "response"), r, strict=True)) for r in rows])
    else:
        print_table(("MODEL TYPE", "REQUEST", "RESPONSE"), rows)
    return OK
