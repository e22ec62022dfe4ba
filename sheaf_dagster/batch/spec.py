"""A job: the files that it reads and writes, and how it runs."""

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
    """How a job runs, whatever its files.

    Each option is declared here once. Run config and the command line's job files take the same
    fields. So does ``defs.yaml``, except for ``row_limit``.
    """

    batch_size: int | Literal["auto"] = Field(
        default=32,
        description='Rows in one batch_predict call. "auto": each worker grows the batch until rows per '
        "second stop rising or memory runs short, then keeps that size. Batches then differ "
        "from run to run, and with some models so do the last bits of an answer.",
    )
    compute: Compute = Field(
        default="tasks",
        description="tasks: elastic Ray tasks. actors: a fixed pool of warm Ray actors. local: this "
        "process, without Ray; nothing is reserved and no limit applies.",
    )
    num_actors: int | None = Field(
        default=None, gt=0, description="Size of the actor pool. Required with compute='actors'."
    )
    on_error: OnError = Field(
        default="fail",
        description="What happens when the model fails on a row. fail: the job ends. record: the row is "
        "written in its place as an error response, and the job goes on.",
    )
    on_invalid: OnError = Field(
        default="fail",
        description="What happens when a row breaks its contract. fail: the job ends before a model is "
        "loaded. record: the row is written in its place as an error row that names its line "
        "and field, and the other rows are run.",
    )
    max_error_rows: int | None = Field(
        default=None,
        ge=0,
        description="The most error rows that one file may have. One more ends the job, and the error "
        "names the first of them. Needs on_error='record' or on_invalid='record'.",
    )
    max_error_fraction: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="The same limit as a share of the file's rows, such as 0.01.",
    )
    batch_timeout: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one batch_predict call may take. After that its worker is stopped, and "
        "on_error decides: the job ends, or the rows are tried one at a time. The first call "
        "includes the work that a model does on first use. tasks and actors can stop any "
        "call; compute='local' can't stop a library that holds Python's interpreter lock.",
    )
    batch_budget: int | Literal["auto"] | None = Field(
        default=None,
        description="Limit on the padded size of a batch, used instead of batch_size. Rows of a window of "
        "the file are sorted by size, and a batch takes rows until rows × the largest one "
        "would exceed the budget. The unit is the backend's own (tokens, pixels), so the "
        'backend must run in stages. "auto": each worker finds the best budget.',
    )
    strict: bool = Field(
        default=False,
        description="Refuse rows that have a field unknown to the contract, and rows that repeat the id "
        "of an earlier row. Without strict, unknown fields are ignored, and both kinds of "
        "rows are counted and reported.",
    )
    keep: list[str] = Field(
        default_factory=list,
        description="Fields to copy from each row into its answer, under the same name. Error rows get "
        "them too. The value is null if a row lacks the field. The contract need not know "
        "these fields.",
    )
    columns: dict[str, str] | None = Field(
        default=None,
        description="The column (or the name in a JSON line) that holds a field, by field, such as "
        "history: sales. Every other column is the field with the column's name.",
    )
    fields: dict[str, Any] | None = Field(
        default=None,
        description="Fields with the same value in every row, such as horizon: 7. They take precedence "
        "over the source.",
    )
    bucket_by: str | None = Field(
        default=None,
        description="Field of the requests. Rows with the same value are put in the same batches, within "
        "a window of the file. The output keeps the input's order.",
    )
    float_type: FloatType = Field(
        default="float64",
        description="Type of the non-integer numbers in a Parquet sink. float32 takes half the space and "
        "holds 7 digits.",
    )
    resume: bool = Field(
        default=True, description="Reuse the finished parts of a killed run of the same job."
    )
    reuse: Reuse | None = Field(
        default=None,
        description="previous: a row whose content the sink's last output has already answered, with the "
        "same model and arguments, keeps that answer. Only the other rows are run, and equal "
        "rows are run once. Batches then differ, and with some models so do the last bits of "
        "an answer.",
    )
    reuse_from: str | None = Field(
        default=None,
        min_length=1,
        description="Take the answers from another output instead: a path or URI. For an asset this is a "
        "template, filled in with the key of the previous partition.",
    )
    row_limit: int | None = Field(
        default=None, gt=0, description="Run only the first rows, to try things out."
    )

    receipt: bool = Field(
        default=False,
        description="Write a receipt beside the sink (<sink>.receipt.json): digests of the source, the "
        "output and the weights, the layout, and package versions. `sheaf-dagster verify` "
        "checks the output against it.",
    )
    price_per_million: dict[str, float] | None = Field(
        default=None,
        description="Price of a million tokens, in any currency, by kind: prompt, completion and cached "
        "(prompt tokens that the engine had in its cache; by default they cost as much as "
        "prompt). With prices, the job reports its cost.",
    )
    max_cost: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Cost at which the job ends, calculated from price_per_million. It covers all files "
        "of the job, and resumed rows count. The job checks it after each chunk, so the cost "
        "of rows in progress comes on top. Answered rows are kept for a run with a higher "
        "limit.",
    )
    max_tokens_total: int | None = Field(
        default=None,
        gt=0,
        description="Number of tokens, of prompts and answers together, at which the job ends. It works "
        "like max_cost.",
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
                "batch_budget already puts rows of similar size into a batch; leave bucket_by out"
            )
        if self.max_cost is not None and not self.price_per_million:
            raise ValueError("max_cost needs price_per_million, from which the cost is calculated")
        return self


class BatchSpec(BatchOptions):
    """A job: run every row of a source through a model and write the answers to a sink."""

    source: str | list[str] = Field(
        min_length=1,
        description="File of requests: a path or any fsspec URI. JSON lines (also .gz and .zst) or "
        ".parquet. A list of files is read as one file, in the given order. A folder is read "
        "as one file, ordered by file name; its folder names can add fields (day=5/).",
    )
    sink: str = Field(
        min_length=1,
        description="File of responses: a path or any fsspec URI. JSON lines (also .gz and .zst), or "
        ".parquet: a table with the contract's fields as columns.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        repr=False,
        description="Arguments of the fsspec file system, such as credentials or an endpoint.",
    )
    only: Only | None = Field(
        default=None,
        description="failed: run only the rows that have an error row in the last output, and keep all "
        "other answers. The sink is again a complete file.",
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
