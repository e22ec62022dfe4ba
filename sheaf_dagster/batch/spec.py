"""What a job is: the file it runs over, and how."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from sheaf_dagster.batch.model_spec import Spec

__all__ = [
    "BatchOptions",
    "BatchSpec",
    "Compute",
    "FloatType",
    "OnError",
    "Only",
    "Reuse",
]

PRICES = ("prompt", "completion", "cached")
"""Tokens that may have a price."""

Compute = Literal["tasks", "actors", "local"]
OnError = Literal["fail", "record"]
Only = Literal["failed"]
FloatType = Literal["float64", "float32"]
Reuse = Literal["previous"]


class BatchOptions(Spec):
    """How a job runs, whatever its files: declared here once, wherever it can be set."""

    batch_size: int | Literal["auto"] = Field(
        default=32,
        description='Rows that one batch_predict call is given. "auto": each worker grows it to '
        "the best rows per second within memory, then holds it; a row's batch mates then differ "
        "from run to run, and with some models the last bits of its answer.",
    )
    compute: Compute = Field(
        default="tasks",
        description="tasks: elastic Ray Data tasks; actors: a fixed pool of warm actors; "
        "local: in this process, without Ray, which reserves nothing and has no limits.",
    )
    num_actors: int | None = Field(
        default=None, gt=0, description="Size of the actor pool; compute='actors' needs it."
    )
    on_error: OnError = Field(
        default="fail",
        description="fail: the first failing row ends the job; record: failing rows are written "
        "in place as error responses.",
    )
    on_invalid: OnError = Field(
        default="fail",
        description="fail: rows that break their contract end the job before a model is loaded; "
        "record: they are written in place as error rows that name line and field, and the others "
        "are run.",
    )
    max_error_rows: int | None = Field(
        default=None,
        gt=0,
        description="With on_error='record' or on_invalid='record': error rows that a file may have. "
        "With one more the job ends at once and names the first ones.",
    )
    max_error_fraction: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="The same as a share of the file's rows, such as 0.01.",
    )
    batch_timeout: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one batch_predict call may take before it is stopped: its worker "
        "is ended, and its rows are reported (on_error) or tried one at a time. The first call "
        "includes what a model does when it is used first. compute='local' can't stop a library "
        "that keeps Python's interpreter locked; tasks and actors can.",
    )
    batch_budget: int | Literal["auto"] | None = Field(
        default=None,
        description="Padded size of a batch, used instead of batch_size: rows of a fixed window are "
        "taken by size, so that rows × the largest of them stays within it. In the backend's own "
        'measure (tokens, pixels), so the backend must run in stages. "auto": each worker finds '
        "the best.",
    )
    strict: bool = Field(
        default=False,
        description="Refuse rows with fields that the contract doesn't know, and rows with the id "
        "of an earlier row. Otherwise such fields are ignored, and both are counted and named.",
    )
    keep: list[str] = Field(
        default_factory=list,
        description="Fields of the rows that are copied into their answers, error rows too, under "
        "their own names; null where a row has none. The contract need not know them.",
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="Maps a field to the column (or the name in a line) that holds it, such as "
        "history: sales. Every other column is the field of its own name.",
    )
    fields: dict[str, Any] | None = Field(
        default=None,
        description="Fields that are the same in every row, such as horizon: 7, whatever the source "
        "itself says.",
    )
    bucket_by: str | None = Field(
        default=None,
        description="Field of the requests: rows with the same value are grouped into batches, "
        "within a fixed window. The output keeps the input's order.",
    )
    float_type: FloatType = Field(
        default="float64",
        description="With a Parquet sink: the type of its numbers that aren't integers. float32 is "
        "half as large and holds 7 digits.",
    )
    resume: bool = Field(
        default=True, description="Reuse the finished parts of a killed run of the same job."
    )
    reuse: Reuse | None = Field(
        default=None,
        description="previous: rows whose content the sink's last output has answered already, by "
        "the same model with the same arguments, take their answers from there; only the others are "
        "run, and rows of equal content once. Batch mates then differ, and with some models the "
        "last bits of an answer.",
    )
    reuse_from: str | None = Field(
        default=None,
        min_length=1,
        description="Another output to take them from: a path or URI; of an asset a template that "
        "is filled in with the previous partition's key.",
    )
    row_limit: int | None = Field(
        default=None, gt=0, description="Run the first rows only (for trying things out)."
    )

    receipt: bool = Field(
        default=False,
        description="Write a receipt beside the sink (<sink>.receipt.json): digests of source, output "
        "and weights, the layout, versions of packages. `sheaf-dagster verify` compares with it.",
    )
    price_per_million: dict[str, float] | None = Field(
        default=None,
        description="Price of a million tokens, in any currency: prompt, completion, and cached "
        "(tokens of prompts that the engine had in its cache; by default the price of "
        "prompt). With prices, the job reports its cost.",
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Cost at which the job ends, by price_per_million: for all its files "
        "together, with resumed rows. It is checked after each chunk, so rows under "
        "way come on top. Answered rows are kept for a run with a higher limit.",
    )
    max_tokens_total: int | None = Field(
        default=None,
        gt=0,
        description="Tokens of prompts and answers at which the job ends; it works as max_cost "
        "does.",
    )

    @field_validator("price_per_million")
    @classmethod
    def _known_prices(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for name, price in (value or {}).items():
            if name not in PRICES:
                raise ValueError(f"{name!r} is not a kind of token; known: {', '.join(PRICES)}")
            if not 0 <= price < math.inf:
                raise ValueError(f"the price of {name!r} must be 0 or more (got {price})")
        return value

    @field_validator("keep")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        for name in value:
            if not name or value.count(name) > 1:
                raise ValueError(f"{name!r} must be the name of a field, listed once")
            if name == "error":
                raise ValueError("'error' is reserved for error rows; rename the field")
        return value

    @field_validator("fields")
    @classmethod
    def _json_fields(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as e:
            raise ValueError(f"fields must hold JSON values only: {e}") from e
        return value

    @field_validator("batch_size")
    @classmethod
    def _some_rows(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f'Input should be greater than 0, or "auto" (got {value})')
        return value

    @field_validator("batch_budget")
    @classmethod
    def _some_budget(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 1:
            raise ValueError(f'Input should be greater than 0, or "auto" (got {value})')
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> BatchOptions:
        if self.compute == "actors" and self.num_actors is None:
            raise ValueError(
                "compute='actors' needs num_actors: the size of the pool "
                "(num_actors=2 with num_gpus=1 reserves 2 GPUs)"
            )
        for limit in ("max_error_rows", "max_error_fraction"):
            if getattr(self, limit) is not None and "record" not in (
                self.on_error,
                self.on_invalid,
            ):
                raise ValueError(
                    f"{limit} needs on_error='record' or on_invalid='record': otherwise the first "
                    "such row ends the job"
                )
        if both := sorted({*(self.columns or ())} & {*(self.fields or ())}):
            raise ValueError(f"{both[0]!r} is given by columns and by fields; leave one out")
        if self.reuse is not None and self.reuse_from is not None:
            raise ValueError(
                "reuse takes answers from the sink's last output, reuse_from from another one; "
                "leave one of them out"
            )
        if self.batch_budget is not None and self.bucket_by is not None:
            raise ValueError(
                "batch_budget already makes batches of rows of like size; leave bucket_by out"
            )
        if self.max_cost is not None and not self.price_per_million:
            raise ValueError("max_cost needs price_per_million, by which the cost is known")
        return self


class BatchSpec(BatchOptions):
    """A job: run every row of a source through a model and write the answers to a sink."""

    source: str | list[str] = Field(
        min_length=1,
        description="File of requests: a path or any fsspec URI. JSON lines, .gz and .zst by suffix, or "
        ".parquet. A list of them is read as one file, in that order; so is a folder, by name, "
        "and what the names of its folders say are fields (day=5/).",
    )
    sink: str = Field(
        min_length=1,
        description="File of responses: a path or any fsspec URI. JSON lines, .gz and .zst by suffix, "
        "or .parquet: a table with the contract's fields as columns.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Arguments of the fsspec file system (credentials, endpoint).",
    )
    only: Only | None = Field(
        default=None,
        description="failed: run only the rows that have an error row in the last output, and keep "
        "the answers of all others. The sink is then a new, complete file.",
    )

    @model_validator(mode="after")
    def _sink_is_no_source(self) -> BatchSpec:
        if self.sink in self.sources:
            raise ValueError(f"source and sink are the same file ({self.sink})")
        return self

    @property
    def sources(self) -> list[str]:
        """The source files, in order."""
        return [self.source] if isinstance(self.source, str) else self.source
