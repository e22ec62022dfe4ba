"""What a job returns to its caller."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.rows.violation import Violation
from sheaf_dagster.batch.spec import BatchSpec
from sheaf_dagster.masking import masked_error

__all__ = ["BatchOutcome", "BatchProgress", "BatchResult", "ValidationReport", "Violation"]


class ValidationReport(BaseModel):
    """Result of checking every row of a source against its contract.

    Attributes:
        source: The file.
        rows: Number of rows in it, without blank lines.
        violations: The first violations, in file order, at most 100.
        total_violations: Number of all violations.
        invalid_rows: Number of rows with at least one violation.
        source_digest: ``sha256:<hex>`` of the file's bytes as stored.
        source_bytes: Size of the file as stored.
        seconds: How long the check took.
        unknown_fields: Fields that the contract doesn't know and ignores, with the number of rows
            that have them. ``name (repeated)`` is a field that one object has twice; its last value
            counts. After a hundred names, further ones are counted together as ``…``.
        meant: For such a field, the field of the contract that was probably meant.
        duplicate_ids: Number of rows with the ``request_id`` of an earlier row. If the contract or
            ``strict`` refuses such rows, they are violations.
        first_duplicate: The first of these rows, and the row whose id it repeats.
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
        """The counts and the first violations, for a job that writes invalid rows as error rows."""
        first = "; ".join(str(v) for v in self.violations[:shown])
        rest = self.total_violations - min(shown, len(self.violations))
        more = f"; and {rest:,} more" if rest > 0 else ""
        return (
            f"{self.source}: {self.invalid_rows:,} of {self.rows:,} rows are invalid and become "
            f"error rows: {first}{more}"
        )

    def warnings(self) -> list[str]:
        """Likely mistakes in valid rows: fields that were ignored, ids that several rows share."""
        return [text for text in (self.unknown_summary(), self.duplicates_summary()) if text]

    def duplicates_summary(self) -> str:
        """How many rows repeat the id of an earlier one, in one line. Empty if none does."""
        if not self.duplicate_ids:
            return ""
        rows = "1 row has" if self.duplicate_ids == 1 else f"{self.duplicate_ids:,} rows have"
        return (
            f"{rows} the id of an earlier row ({self.first_duplicate}), so answers can't be told "
            "apart by id; strict=True refuses such rows"
        )

    def unknown_summary(self, shown: int = 5) -> str:
        """The fields that were ignored, in one line. Empty if there are none."""
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
        rows_done: Rows answered so far, including rows of a resumed run.
        rows_total: Rows of the files known so far.
        files_done: Files that are committed or have failed.
        files_total: Files of the job.
        rows_per_second: Rate since inference began, without resumed rows.
        eta_seconds: Estimated time left. None if there is no rate yet.
        elapsed_seconds: Time since the job began.
        rows_resumed: The part of ``rows_done`` that a killed run of the same job had answered.
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
        output_rows: Rows of the sink. The workers counted them as they wrote its parts.
        seconds: Wall time of this file, including validation. The files of one job overlap, so
            their times don't add up to the job's time.
        source_digest: ``sha256:<hex>`` of the source's bytes as stored.
        fingerprint: Hash of everything that decides the output: source, model, batch layout, policy.
        resumed_rows: Rows taken over from a killed run of the same job.
        reused_rows: Rows that kept the answer of an earlier output (``reuse``, ``only="failed"``).
        repeated_rows: Rows that got the answer of an equal row of the source (``reuse``).
        error_rows: Rows with an error response (``on_error="record"``).
        non_finite: Numbers that were not finite and became ``null``.
        deviations: Number of rows whose answer deviates from what was asked, by kind
            (``Deviation``).
        tokens: Tokens that the answers report: ``prompt``, ``output``, and ``hit`` (prompt tokens
            that the engine had in its cache). Empty if the answers report none.
        new_tokens: Tokens of this run alone, without resumed rows.
        cost: Cost of ``tokens`` by ``price_per_million``. None if it isn't known.
        new_cost: Cost of ``new_tokens``.
        chunks: Number of chunks that the file was cut into.
        output_bytes: Size of the sink.
        validation: The report of the check before inference.
        workers: Number of worker processes that took part.
        model_digest: Identity of the weights, if the backend knows it: ``sha256:<hex>`` of local
            files, ``hub:<id>@<commit>``, or a text of the backend's own.
        model_version: Hash of the model's spec and of its weights as ``identify`` finds them.
        load_seconds: The longest ``load()`` of the workers that served this file first.
        inference_seconds: Time from the start of the first chunk to the end of the last.
        predict_seconds: Time inside ``batch_predict`` or ``infer``, or with rows in flight, summed
            over the workers.
        processes: Processes beside a worker's model that prepared and answered rows, at most. 0 where
            only threads did.
        shape: How the backend takes its rows: ``call``, ``stages`` or ``flight``. Empty if nothing
            was computed.
        device_busy_fraction: Share of the workers' time after load in which ``infer`` ran or rows
            were in flight. None for backends of shape ``call``, and if nothing was computed.
        in_flight_mean: Rows in flight in one worker, averaged over the time when there were any.
            None for backends of other shapes.
        padding_fraction: Share of the device's input that was padding, in the unit of the backend's
            ``size``. None if the backend has no ``size``.
        gpu_utilisation: Share of time (0 to 1) in which the workers' GPUs were busy, as sampled by
            NVML. None without a GPU or without ``nvidia-ml-py``.
        gpu_memory_bytes: The most memory in use on one of these GPUs, by any process.
        halved_batches: Batches that ran out of memory and were halved.
        batch_size: Rows in a batch. With ``batch_size="auto"``: the size that the workers ended with
            (median). None if nothing was computed or a budget was used.
        batch_budget: Padded size of a batch that the workers ended with (median).
        receipt: Location of the receipt. None if none was asked for, or none could be written.
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
    processes: int = 0
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
        """What a notebook shows: the same page that ``ReportOptions(report="html")`` writes."""
        from sheaf_dagster.batch.report import notebook_view

        return notebook_view(self, self._job)

    @property
    def rows_per_second(self) -> float:
        """Rows answered per second of validation and inference.

        Resumed, reused and repeated rows don't count. Neither does the time in which Ray and the model
        start.
        """
        seconds = self.validation.seconds + self.inference_seconds
        answered = self.rows - self.resumed_rows - self.reused_rows - self.repeated_rows
        return answered / seconds if seconds > 0 else 0.0


class BatchOutcome(BaseModel):
    """How one file of a job with many files ended.

    Attributes:
        spec: The file.
        result: Its result, if it was run and committed.
        error: Why it failed, if it did.
    """

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
        """Whether the sink is committed, by this job or by an earlier one."""
        return self.error is None

    @property
    def unchanged(self) -> bool:
        """Whether there was nothing to run.

        Either the output of an earlier job is still valid, or none of its rows had failed
        (``only="failed"``).
        """
        return self.result is None and self.error is None
