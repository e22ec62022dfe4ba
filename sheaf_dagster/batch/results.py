"""What a job tells its caller."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.masking import masked_error

__all__ = ["BatchOutcome", "BatchProgress", "BatchResult", "ValidationReport", "Violation"]

MAX_VIOLATIONS_SHOWN = 100


class Violation(BaseModel):
    """One thing wrong with one row.

    Attributes:
        line: Line of the file, counted from 1, blank lines included; of a table, its row.
        field: Path of the field inside the row, such as ``history.3``; empty for the whole row.
        message: What is wrong, in words.
        excerpt: The offending value or the start of the line, shortened.
        file: The file, where the source consists of several.
        column: Of a table: the column that holds the field.
    """

    line: int
    field: str
    message: str
    excerpt: str = ""
    file: str = ""
    column: str | None = None

    def __str__(self) -> str:
        where = f"{self.file}, " if self.file else ""
        where += f"line {self.line}" if self.column is None else f"row {self.line}"
        if self.column:
            where += f", column {self.column!r}"
        if self.field and self.field != self.column:
            where += f", field {self.field!r}"
        return f"{where}: {self.message}" + (f" (got {self.excerpt})" if self.excerpt else "")


class ValidationReport(BaseModel):
    """Outcome of checking every row of a source against its contract.

    Attributes:
        source: The file.
        rows: Rows that it holds (blank lines don't count).
        violations: The first of them, in file order, at most 100.
        total_violations: How many there are in all.
        invalid_rows: Rows with at least one violation.
        source_digest: ``sha256:<hex>`` of the file's (stored) bytes.
        source_bytes: Size of the file as stored.
        seconds: How long the check took.
        unknown_fields: Rows by the name of a field that their contract doesn't know and ignores;
            ``name (repeated)`` of one that an object has again, where the last one counts. From a
            hundred names on, further ones are counted together as ``…``.
        meant: By the name of such a field the contract's own that was probably meant.
        duplicate_ids: Rows with the ``request_id`` of an earlier row. (Where the contract, or
            ``strict``, refuses them, they are violations.)
        first_duplicate: Which the first of them is, and whose id it has.
    """

    source: str
    rows: int = 0
    violations: list[Violation] = Field(default_factory=list)
    total_violations: int = 0
    invalid_rows: int = 0
    source_digest: str = ""
    source_bytes: int = 0
    seconds: float = 0.0
    unknown_fields: dict[str, int] = Field(default_factory=dict)
    meant: dict[str, str] = Field(default_factory=dict)
    duplicate_ids: int = 0
    first_duplicate: str = ""

    @property
    def ok(self) -> bool:
        """Whether every row is valid."""
        return self.total_violations == 0

    def summary(self, shown: int = 5) -> str:
        """One readable message: the counts, the first few violations, and what to do."""
        if self.ok:
            valid = f"{self.source}: all {self.rows} rows are valid"
            return "; ".join([valid, *self.warnings()])
        many = "" if self.total_violations == 1 else "s"
        headline = (
            f"{self.source}: {self.invalid_rows:,} of {self.rows:,} rows are invalid "
            f"({self.total_violations:,} violation{many}); nothing was run or written"
        )
        lines = [headline]
        lines += [f"  {v}" for v in self.violations[:shown]]
        rest = self.total_violations - min(shown, len(self.violations))
        if rest > 0:
            lines.append(f"  … and {rest} more")
        what = "lines" if all(v.column is None for v in self.violations) else "rows"
        lines.append(f"  Fix these {what} (or the asset that wrote them) and run again.")
        return "\n".join(lines)

    def recorded_summary(self, shown: int = 5) -> str:
        """The counts and the first violations, where the rows become error rows."""
        first = "; ".join(str(v) for v in self.violations[:shown])
        rest = self.total_violations - min(shown, len(self.violations))
        more = f"; and {rest:,} more" if rest > 0 else ""
        return (
            f"{self.source}: {self.invalid_rows:,} of {self.rows:,} rows are invalid and become "
            f"error rows: {first}{more}"
        )

    def warnings(self) -> list[str]:
        """What valid rows may not have meant: fields that were ignored, ids that they share."""
        return [text for text in (self.unknown_summary(), self.duplicates_summary()) if text]

    def duplicates_summary(self) -> str:
        """How many rows share their id with an earlier one, in one line; empty where none does."""
        if not self.duplicate_ids:
            return ""
        rows = "1 row has" if self.duplicate_ids == 1 else f"{self.duplicate_ids:,} rows have"
        return (
            f"{rows} the id of an earlier row ({self.first_duplicate}), so answers can't be told "
            "apart by id; strict=True refuses such rows"
        )

    def unknown_summary(self, shown: int = 5) -> str:
        """The fields that were ignored, in one line; empty where there are none."""
        if not self.unknown_fields:
            return ""
        most = sorted(self.unknown_fields.items(), key=lambda item: (-item[1], item[0]))
        texts = []
        for name, rows in most[:shown]:
            meant = f", did you mean {self.meant[name]!r}?" if name in self.meant else ""
            texts.append(f"{name!r} ({rows:,} row{'s' * (rows != 1)}{meant})")
        more = f" and {len(most) - shown} more" if len(most) > shown else ""
        return (
            "fields were ignored, because the contract doesn't know them or an object has them "
            "twice: "
            f"{', '.join(texts)}{more}; "
            "rename or drop them, or refuse such rows with strict=True"
        )


class BatchProgress(BaseModel):
    """How far a job is.

    Attributes:
        rows_done: Rows answered so far, those of a resumed run included.
        rows_total: Rows of the files known so far.
        files_done: Files committed or failed.
        files_total: Files of the job.
        rows_per_second: Rate since inference began, resumed rows left out.
        eta_seconds: Estimated time to the end, where the rate allows one.
        elapsed_seconds: Since the job began.
        rows_resumed: How many of ``rows_done`` a killed run of the same job had answered.
    """

    rows_done: int
    rows_total: int
    files_done: int
    files_total: int
    rows_per_second: float
    eta_seconds: float | None
    elapsed_seconds: float
    rows_resumed: int = 0


class BatchResult(BaseModel):
    """A finished job; its sink is committed.

    Attributes:
        source: The file of requests.
        sink: The file of responses.
        rows: Rows of the source.
        output_rows: Rows of the sink, as the workers counted them while they wrote its parts.
        seconds: Wall time of this file, validation included. Files of one many-file job
            overlap, so their times don't add up to the job's.
        source_digest: ``sha256:<hex>`` of the source's stored bytes.
        fingerprint: Hash of all that decides the output: source, model, batch layout, policy.
        resumed_rows: Rows taken over from a killed run of the same job.
        reused_rows: Rows that have the answers of an earlier output (``reuse``, ``only="failed"``).
        repeated_rows: Rows that have the answer of an equal row of the source (``reuse``).
        error_rows: Rows that hold an error response (``on_error="record"``).
        non_finite: Numbers that were not finite and became ``null``.
        deviations: Rows that are answered otherwise than asked, by kind (``Deviation``).
        tokens: Tokens that the answers say they took: ``prompt``, ``output``, and ``hit``, those of
            the prompts that the engine had in its cache. Empty where no answer says.
        new_tokens: Those of this run alone, without what it resumed.
        cost: What ``tokens`` cost by ``price_per_million``; None where that is not known.
        new_cost: What ``new_tokens`` cost.
        chunks: Number of chunks the file was cut into.
        output_bytes: Size of the sink.
        validation: The up-front check.
        workers: Worker processes that took part.
        model_digest: Identity of the weights where the backend knows it: ``sha256:<hex>`` of
            local files, ``hub:<id>@<commit>``, or what the backend says.
        model_version: Hash of the model's spec and of its weights as ``identify`` finds them.
        load_seconds: Longest ``load()`` among the workers that served this file first.
        inference_seconds: From the first chunk's start to the last one's end.
        predict_seconds: Time inside ``batch_predict`` or ``infer``, or with rows in flight, summed
            over workers.
        shape: How the backend takes its rows: ``call``, ``stages`` or ``flight``; empty where
            nothing was computed.
        device_busy_fraction: Share of the workers' time after load in which ``infer`` ran, or rows
            were in flight. None for a backend in one call, which can't be seen into, and where
            nothing was computed.
        in_flight_mean: Rows in flight in a worker, on average over the time in which there were
            any; None for other backends.
        padding_fraction: Share of what the device was given that was padding, in the measure of
            the backend's ``size``; None where it has none.
        gpu_utilisation: Share of time in which the workers' GPUs ran something (0 to 1), as NVML
            samples it; None where there is no GPU, or no ``nvidia-ml-py`` to ask.
        gpu_memory_bytes: The most memory that was in use on one of them, whoever used it.
        halved_batches: Batches that ran out of memory and were halved.
        batch_size: Rows of a batch; with ``batch_size="auto"`` what the workers ended with (the
            median), None where nothing was computed or a budget was in its place.
        batch_budget: Padded size of a batch: what the workers ended with (the median).
        receipt: Where the receipt is; None where none was asked for, or none could be written.
    """

    model_config = ConfigDict(protected_namespaces=())

    source: str
    sink: str
    rows: int
    output_rows: int
    seconds: float
    source_digest: str
    fingerprint: str
    resumed_rows: int = 0
    reused_rows: int = 0
    repeated_rows: int = 0
    error_rows: int = 0
    non_finite: int = 0
    deviations: dict[str, int] = Field(default_factory=dict)
    tokens: dict[str, int] = Field(default_factory=dict)
    new_tokens: dict[str, int] = Field(default_factory=dict)
    cost: float | None = None
    new_cost: float | None = None
    chunks: int = 0
    output_bytes: int = 0
    validation: ValidationReport
    workers: int = 0
    model_digest: str | None = None
    model_version: str = ""
    load_seconds: float = 0.0
    inference_seconds: float = 0.0
    predict_seconds: float = 0.0
    shape: str = ""
    device_busy_fraction: float | None = None
    in_flight_mean: float | None = None
    padding_fraction: float | None = None
    gpu_utilisation: float | None = None
    gpu_memory_bytes: int | None = None
    halved_batches: int = 0
    batch_size: int | None = None
    batch_budget: int | None = None
    receipt: str | None = None

    _job: tuple[ModelSpec, BatchSpec, bool] | None = PrivateAttr(None)
    """The model, the job, and whether rows must not be shown; known where the job ran."""

    def __eq__(self, other: object) -> bool:
        # Two that say the same are equal, wherever one of them has been sent from.
        if not isinstance(other, BatchResult):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def of_job(self, model: ModelSpec, spec: BatchSpec, *, redact: bool) -> BatchResult:
        """This result, with what a notebook needs to show its rows."""
        self._job = (model, spec, redact)
        return self

    def _repr_html_(self) -> str:
        """What a notebook shows: the page that ``ReportOptions(report="html")`` writes."""
        from sheaf_dagster.batch.report import notebook_view

        return notebook_view(self, self._job)

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second of validation and inference.

        Resumed and reused rows don't count, nor does the wait for Ray and the model to come up.
        """
        seconds = self.validation.seconds + self.inference_seconds
        answered = self.rows - self.resumed_rows - self.reused_rows - self.repeated_rows
        return answered / seconds if seconds > 0 else 0.0


class BatchOutcome(BaseModel):
    """How one file of a many-file job ended: with a result, with an error, or with nothing to do."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    spec: BatchSpec
    result: BatchResult | None = None
    error: Exception | None = None

    @field_validator("error")
    @classmethod
    def _mask(cls, error: Exception | None) -> BaseException | None:
        return error and masked_error(error)  # its causes are not ours, and quote what rows hold

    @property
    def ok(self) -> bool:
        """Whether the sink is committed, by this job or by the earlier one that it was left to."""
        return self.error is None

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to run.

        What an earlier job committed still holds; with ``only="failed"``: none of its rows failed.
        """
        return self.result is None and self.error is None
