"""A receipt of a finished file: all that it takes to make some of its answers again.

It is kept beside the sink (``<sink>.receipt.json``) and holds digests and settings, no row and no
secret. ``batch/verification.py`` compares the world with it.
"""

from __future__ import annotations

import hashlib
import inspect
import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sheaf_dagster.batch.model_spec import ModelSpec, problems_of
from sheaf_dagster.batch.results import BatchResult
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.errors import SpecError
from sheaf_dagster.storage import Location, source_digest, store_at
from sheaf_dagster.storage.location import sink_errors
from sheaf_dagster.storage.options import secret_arguments
from sheaf_dagster.version import __version__

__all__ = ["Receipt", "code_digest", "packages", "read_receipt", "write_receipt"]

_SUFFIX = ".receipt.json"


class Receipt(BaseModel):
    """What a file was made of.

    Attributes:
        form: Version of this form.
        source: The files of requests, in order.
        source_digest: ``sha256:<hex>`` of their stored bytes.
        sink: The file of answers.
        output_digest: ``sha256:<hex>`` of its stored bytes.
        rows: Rows of the source.
        reused_rows: Answers that an earlier run had given.
        fingerprint: Hash of all that decides the output.
        model: The model.
        weights: Identity of its weights, where the backend knows it.
        model_version: Hash of the model's spec and of its weights.
        layout: How the file was cut and run: the job's options but ``compute``.
        redact: Whether values of rows were kept out of error rows.
        modules: Modules that define the backend and the contract.
        code: ``sha256:<hex>`` of the source files of the backend, the contract and the classes
            that they inherit from; empty where there are none.
        sheaf_dagster: Version of this library.
        python: Version of Python.
        packages: Versions of the packages that the job's driver had, by name.
    """

    model_config = ConfigDict(protected_namespaces=(), extra="forbid")

    form: int = Field(1, ge=1, le=1)
    source: list[str]
    source_digest: str
    sink: str
    output_digest: str
    rows: int
    reused_rows: int = 0
    fingerprint: str
    model: ModelSpec
    weights: str | None
    model_version: str
    layout: dict[str, Any]
    redact: bool = False
    modules: list[str] = Field(default_factory=list)
    code: str = ""
    sheaf_dagster: str = __version__
    python: str = Field(default_factory=platform.python_version)
    packages: dict[str, str] = Field(default_factory=dict)

    def spec(self, sink: str, storage_options: dict[str, Any]) -> BatchSpec:
        """The job that makes the same answers, in this process, and writes them elsewhere.

        It takes no answer of an earlier output, as a copy would prove nothing.

        Raises:
            SpecError: The receipt's settings can't work with this version.
        """
        layout = dict(self.layout)
        if layout.pop("reuse_from", None) is not None:
            layout["reuse"] = "previous"  # equal rows are still run once
        try:
            return BatchSpec(
                source=self.source,
                sink=sink,
                storage_options=storage_options,
                compute="local",
                **layout,
            )
        except (ValidationError, TypeError) as e:
            why = problems_of(e) if isinstance(e, ValidationError) else e
            raise SpecError(f"the receipt of {self.sink}: layout: {why}") from e


_NOT_OF_THE_LAYOUT = {
    "source", "sink", "storage_options", "compute", "num_actors", "resume", "receipt", "only",
    "price_per_million", "max_cost", "max_tokens_total",
}  # fmt: skip


def write_receipt(context: ModelContext, spec: BatchSpec, result: BatchResult) -> str:
    """Writes the receipt of a committed file beside its sink; returns where.

    Raises:
        SpecError: An argument of the model holds a secret.
        SourceError, SinkError: The sink can't be read again, or the receipt not be written.
    """
    if secrets := secret_arguments(context.spec.backend_kwargs):
        raise SpecError(
            f"model {context.spec.name!r}: {', '.join(secrets)} of backend_kwargs would appear in "
            "the "
            "receipt as plain text; give {'env': NAME}, and the receipt names the variable"
        )
    sources = [Location.of(uri, spec.storage_options) for uri in spec.sources]
    receipt = Receipt(
        source=[location.uri for location in sources],
        source_digest=result.source_digest,
        sink=result.sink,
        output_digest=source_digest(result.sink, spec.storage_options),
        rows=result.rows,
        reused_rows=result.reused_rows,
        fingerprint=result.fingerprint,
        model=context.spec,
        weights=context.identity or result.model_digest,
        model_version=context.version,
        layout=spec.model_dump(mode="json", exclude=_NOT_OF_THE_LAYOUT, exclude_defaults=True),
        redact=context.rows.redact,
        modules=sorted({c.__module__ for c in (context.backend_cls, context.rows.request)}),
        code=code_digest(context.backend_cls, context.rows.request, context.rows.response),
        packages=dict(packages()),
    )
    at = _beside(Location.of(spec.sink, spec.storage_options))
    with sink_errors(at):
        store_at(at).write(receipt.model_dump_json(indent=1).encode())
    return at.uri


def read_receipt(uri: str, storage_options: dict[str, Any] | None = None) -> Receipt:
    """Reads a receipt.

    Args:
        uri: The receipt, or the sink beside which it stands.
        storage_options: Of its file system.

    Raises:
        SourceError: There is none, or it can't be read.
        SpecError: It is not a receipt.
    """
    location = Location.of(uri, storage_options)
    at = location if location.name.endswith(_SUFFIX) else _beside(location)
    if location.name.endswith(".json") and store_at(at).state() is None:
        at = location  # a receipt by another name
    store = store_at(at)
    text = store.read_range(0, store.require_state().size)
    try:
        return Receipt.model_validate_json(text)
    except ValidationError as e:
        raise SpecError(f"{at.uri} is not a receipt of this version: {problems_of(e)}") from e


def code_digest(*classes: type) -> str:
    """``sha256:<hex>`` of the source files of classes and their bases; empty where there are none."""
    files: dict[str, bytes] = {}
    for cls in {base for c in classes for base in inspect.getmro(c)}:
        with suppress(OSError, TypeError):  # built in, or a notebook's
            files[cls.__module__] = Path(inspect.getsourcefile(cls) or "").read_bytes()
    if not files:
        return ""
    digests = [f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in sorted(files)]
    return f"sha256:{hashlib.sha256(chr(10).join(digests).encode()).hexdigest()}"


@cache
def packages() -> Mapping[str, str]:
    """Versions of the packages that are installed here, by name; looked up once in a process."""
    found = {d.metadata["Name"]: d.version for d in distributions()}
    return dict(sorted((name, version) for name, version in found.items() if name))


def _beside(sink: Location) -> Location:
    return sink.parent.child(f"{sink.name}{_SUFFIX}")
