"""Assets that return rows and assets that take them, with files in between."""

# No postponed annotations here: Dagster reads those of nested resources as they are.
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import dagster as dg
import orjson
from pydantic import Field, PrivateAttr

from sheaf_dagster.batch.results import ValidationReport
from sheaf_dagster.batch.rows.requests import RowContract
from sheaf_dagster.batch.rows.violation import MAX_VIOLATIONS_SHOWN
from sheaf_dagster.contracts import contract_for
from sheaf_dagster.definitions.column_schema import table_schema
from sheaf_dagster.definitions.paths import (
    SINK_METADATA,
    check_template,
    partition_fields,
    resolve,
)
from sheaf_dagster.definitions.preview import row_preview
from sheaf_dagster.definitions.resources import StorageResource
from sheaf_dagster.definitions.row_blocks import blocks_of, text_of
from sheaf_dagster.definitions.row_sources import lines_of, pieces_of
from sheaf_dagster.definitions.row_views import view_for
from sheaf_dagster.errors import InputValidationError, SheafError, SinkError
from sheaf_dagster.storage import LineWriter, Location, store_at
from sheaf_dagster.storage.formats import is_table, read_schema
from sheaf_dagster.storage.source_files import is_folder

if TYPE_CHECKING:
    from upath import UPath

__all__ = ["MODEL_TYPE_METADATA", "JsonlIOManager", "RowsIOManager"]

MODEL_TYPE_METADATA = "sheaf_dagster/model_type"
"""Metadata of an asset: the model type whose requests its rows must be."""

_PREVIEW_ROWS = 5
_MANY = "a dictionary of rows by partition key"


class RowsIOManager(dg.ConfigurableIOManager, dg.UPathIOManager):
    """Writes what an asset returns as a file of rows, and loads such files by annotation.

    The files are JSON lines or, with ``format="parquet"``, tables. If an asset has a place of its own
    (``sheaf_dagster/sink``) with a suffix, the suffix decides the format.

    An asset may return an iterable or iterator of rows (dictionaries, typed requests, dataclasses), a
    table of pandas, polars or Arrow, a Ray Dataset, or the ``Path`` of a finished file or folder.
    Iterators are streamed in constant memory. (Return a generator inside ``dg.Output``: Dagster takes a
    bare generator for a stream of its own events.) If one run covers several partitions, the asset
    returns a dictionary (or an iterator of pairs) from partition key to any of these. The file appears
    whole or not at all. NaN becomes ``null`` in JSON. A Parquet file keeps the types of a table; rows of
    Python values get the matching types.

    The annotation of a downstream asset says what it takes: ``list[dict]``,
    ``list[TimeSeriesResponse]``, ``RowStream[…]``, ``Iterator``, ``pandas.DataFrame``,
    ``polars.DataFrame``, ``polars.LazyFrame``, ``pyarrow.Table``, ``ray.data.Dataset``, ``Path``,
    ``UPath``, ``str``. Several upstream partitions are read one after the other, and ``dict[str, …]``
    keeps them apart by key. With the input metadata ``allow_missing_partitions``, missing partitions are
    skipped. If no partition is left, or none was asked for (the first day of an asset that takes its own
    previous day), the argument is an empty list, dictionary or table, or None if the annotation allows
    None (``… | None``).

    Files are placed as in Dagster's ``UPathIOManager``: ``{root}/<asset key>.jsonl`` (or ``.parquet``), or
    ``{root}/<asset key>/{partition_key}.jsonl``. Several dimensions have one folder each, in the order
    of their names. An asset with the metadata ``sheaf_dagster/sink``, a template such as
    ``"{root}/requests/{partition_key}.jsonl"``, has its own place. Assets of
    ``build_batch_inference_asset`` have that metadata, so an asset downstream can take their responses
    directly.

    A place may be a folder that its asset fills itself (``pq.write_to_dataset``, Spark). The folder is
    loaded as one file, like the source of a model. Its folder names (``day=5/``) become columns.
    """

    storage: dg.ResourceDependency[StorageResource]
    prefix: str = Field(default="", description="Folder below the storage's root.")
    format: Literal["jsonl", "parquet"] = Field(
        default="jsonl", description="jsonl: lines of JSON. parquet: tables."
    )
    compression: Literal["", "gz", "zst"] = Field(
        default="",
        description="gz or zst: compress files of JSON lines, and add the suffix to their names. Parquet "
        "files are always compressed.",
    )
    model_type: str | None = Field(
        default=None,
        description="Model type of the rows. Each row is validated as a request of that type while the "
        "file is written. If one row is invalid, no file appears. A single asset sets its own "
        "with the metadata sheaf_dagster/model_type.",
    )

    redact_rows: bool = Field(
        default=False,
        description="Show no preview, and leave the values of rows out of messages about invalid rows.",
    )

    _base_path: Any = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Makes the folder that Dagster's own path rules start from."""
        from upath import UPath

        if self.format == "parquet" and self.compression:
            raise dg.DagsterInvalidInvocationError(
                f"RowsIOManager: compression={self.compression!r} works only with format='jsonl'; "
                "a Parquet file is compressed in any case. Leave it out"
            )

        base = "/".join(filter(None, [self.storage.base, self.prefix.strip("/")]))
        self._base_path = UPath(base, **Location.of(base, self.storage.options).options)

    # Where files are.

    def _with_extension(self, path: "UPath") -> "UPath":
        name = ".".join(filter(None, [path.name, self.format, self.compression]))
        return path.with_name(name)  # type: ignore[no-any-return]

    def _get_path(self, context: dg.InputContext | dg.OutputContext) -> "UPath":
        template = _template(context)
        if template is None:
            return super()._get_path(context)
        check_template(SINK_METADATA, template, [], partitioned=False)
        return self._at(resolve(template, self.storage.base, {}))

    def _get_paths_for_partitions(
        self, context: dg.InputContext | dg.OutputContext
    ) -> dict[str, "UPath"]:
        fields = {key: partition_fields(key) for key in context.asset_partition_keys}
        template = _template(context)
        if template is None:
            return super()._get_paths_for_partitions(context)
        dimensions = sorted({name for f in fields.values() for name in f} - {"partition_key"})
        check_template(SINK_METADATA, template, dimensions, partitioned=True)
        return {k: self._at(resolve(template, self.storage.base, f)) for k, f in fields.items()}

    def _get_multipartition_backcompat_paths(
        self, context: dg.InputContext | dg.OutputContext
    ) -> Mapping[str, "UPath"]:
        return {}

    def _at(self, uri: str) -> "UPath":
        from upath import UPath

        path: UPath = UPath(uri, **self._base_path.storage_options)
        return path

    def _location(self, path: "UPath") -> Location:
        return Location.of(str(path), self.storage.options)

    # Writing.

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Writes what an asset returned: one file, or one a partition."""
        try:
            if not context.has_asset_partitions:
                path = self._get_path(context)
                context.add_output_metadata(self._write(context, obj, path, partitioned=False))
                return
            paths = self._get_paths_for_partitions(context)
            if len(paths) == 1 and not (isinstance(obj, Mapping) and set(obj) == set(paths)):
                (path,) = paths.values()
                context.add_output_metadata(self._write(context, obj, path, partitioned=True))
                return
            self._write_many(context, obj, paths)
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=e.retryable) from e

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: "UPath") -> None:
        """Writes one file."""
        self._write(context, obj, path, partitioned=context.has_asset_partitions)

    def _write_many(
        self, context: dg.OutputContext, obj: Any, paths: Mapping[str, "UPath"]
    ) -> None:
        left = dict(paths)
        for key, rows in _pairs(obj, len(paths)):
            path = left.pop(key, None)
            if path is None:
                raise SinkError(
                    f"the asset returned rows of partition {key!r} "
                    + (
                        "twice"
                        if key in paths
                        else f"which is not one of the {len(paths)} of this run"
                    )
                )
            context.step_context.add_asset_metadata(
                self._write(context, rows, path, partitioned=True),
                asset_key=context.asset_key,
                partition_key=key,
            )
        if left:
            raise SinkError(
                f"the asset returned no rows of {len(left)} of {len(paths)} partitions: "
                f"{', '.join(list(left)[:5])}{' …' if len(left) > 5 else ''}; an empty list writes "
                "an empty file"
            )

    def _write(
        self, context: dg.OutputContext, obj: Any, path: "UPath", *, partitioned: bool
    ) -> dict[str, Any]:
        context.log.debug(self.get_writing_output_log_message(path))
        location = self._location(path)
        model_type = _metadata(context).get(MODEL_TYPE_METADATA, self.model_type)
        contract = (
            RowContract.of(contract_for(str(model_type)), redact=self.redact_rows)
            if model_type
            else None
        )
        preview: list[Any] = []
        report = ValidationReport(source=location.uri)
        with LineWriter(location) as writer:
            take = pieces_of if is_table(location.uri) else lines_of
            for block in blocks_of(take(obj, self.storage.options)):
                if contract is not None:
                    check = contract.validate(text_of(block.lines()), report.rows + 1)
                    _add(report, check.violations, check.total_violations, check.invalid_rows)
                report.rows += block.rows
                if report.ok:
                    preview += _parsed(block.lines(_PREVIEW_ROWS - len(preview)), len(preview) + 1)
                    block.write(writer)
            if not report.ok:
                raise InputValidationError(report.summary(), report)
        metadata: dict[str, Any] = {
            "dagster/partition_row_count" if partitioned else "dagster/row_count": writer.rows,
            "dagster/uri": location.uri,
            "path": dg.MetadataValue.path(location.uri),
            "output_bytes": writer.size,
        }
        if is_table(location.uri):
            metadata["dagster/column_schema"] = table_schema(read_schema(location))
        if model_type:
            metadata["validation"] = f"all {writer.rows} rows are valid {model_type} requests"
        if preview and not self.redact_rows:
            metadata["preview"] = dg.MetadataValue.md(row_preview(preview))
        return metadata

    # Loading.

    def load_input(self, context: dg.InputContext) -> Any:
        """Loads rows as what the argument is annotated with."""
        try:
            partitioned = context.has_asset_key and context.has_asset_partitions
            if partitioned and not context.asset_partition_keys:
                return _nothing(context)
            return super().load_input(context)
        except SheafError as e:
            raise dg.Failure(str(e), allow_retries=e.retryable) from e

    def load_from_path(self, context: dg.InputContext, path: "UPath") -> Any:
        """Loads one file."""
        wanted, _, _ = _wanted(context)
        return view_for(wanted).make([self._location(path)], wanted)

    def load_partitions(self, context: dg.InputContext) -> Any:
        """Loads one file a partition: joined, or by key where the annotation says so."""
        wanted, by_key, _ = _wanted(context)
        paths = self._get_paths_for_partitions(context)
        if by_key or (wanted is Any and len(paths) > 1):
            loaded = {k: self._load_partition_from_path(context, k, p) for k, p in paths.items()}
            return {key: obj for key, obj in loaded.items() if obj is not None}
        files = {key: self._location(path) for key, path in paths.items()}
        if (context.definition_metadata or {}).get("allow_missing_partitions", False):
            for key in [k for k, file in files.items() if not _is_there(file)]:
                context.log.warning(self.get_missing_partition_log_message(key))
                del files[key]
            if not files:
                return _nothing(context)
        context.log.debug(f"Loading {len(files)} partitions as {wanted}")
        return view_for(wanted).make(list(files.values()), wanted)


JsonlIOManager = RowsIOManager
"""The name that it had when it wrote JSON lines alone."""


def _metadata(context: dg.InputContext | dg.OutputContext) -> Mapping[str, Any]:
    """Metadata of the asset that the file belongs to."""
    output = context.upstream_output if isinstance(context, dg.InputContext) else context
    return (output.definition_metadata if output is not None else None) or {}


def _template(context: dg.InputContext | dg.OutputContext) -> str | None:
    template = _metadata(context).get(SINK_METADATA)
    if template is None:
        return None
    return str(getattr(template, "value", template))


def _is_there(file: Location) -> bool:
    return is_folder(file) or store_at(file).state() is not None


def _wanted(context: dg.InputContext) -> tuple[Any, bool, bool]:
    """What an input is annotated with, whether by partition key, and whether None will do."""
    wanted = context.dagster_type.typing_type
    optional = get_origin(wanted) in (Union, UnionType)
    if optional:
        wanted = next(t for t in get_args(wanted) if t is not type(None))
    if get_origin(wanted) in (dict, Mapping):
        return get_args(wanted)[1], True, optional
    return (Any, True, optional) if wanted is dict else (wanted, False, optional)


def _nothing(context: dg.InputContext) -> Any:
    """What an input is given where there is no partition to load."""
    wanted, by_key, optional = _wanted(context)
    if optional:
        return None
    return {} if by_key else view_for(wanted).make([], wanted)


def _pairs(obj: Any, partitions: int) -> Iterator[tuple[str, Any]]:
    if isinstance(obj, Mapping):
        yield from obj.items()
        return
    problem = SinkError(
        f"this run makes {partitions} partitions, so the asset must return {_MANY}, or an "
        f"iterator of (key, rows); it returned a {type(obj).__name__}. Or run one partition at a "
        "time: backfill_policy=dg.BackfillPolicy.multi_run(1)"
    )
    if not isinstance(obj, Iterator):
        raise problem
    for pair in obj:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str)):
            raise problem
        yield pair


def _parsed(lines: list[bytes], first: int) -> list[Any]:
    """The first rows, which those of a ready file needn't be."""
    rows = []
    for number, line in enumerate(lines, first):
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as e:
            raise SinkError(f"row {number} is not JSON: {e}") from e
    return rows


def _add(report: ValidationReport, violations: list[Any], total: int, rows: int) -> None:
    report.violations += violations[: MAX_VIOLATIONS_SHOWN - len(report.violations)]
    report.total_violations += total
    report.invalid_rows += rows
