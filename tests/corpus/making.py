"""The cases of the corpus that are too large to keep: written when they are needed."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import zstandard

GOOD = b'{"model_name":"m","value":1}\n'
MIB = 2**20


def nest_100000_list(folder: Path) -> Path:
    deep = b"[" * 100_000 + b"]" * 100_000
    return _put(folder, GOOD + b'{"model_name":"m","value":1,"note":' + deep + b"}\n")


def nest_100000_unknown(folder: Path) -> Path:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    return _put(folder, GOOD + b'{"model_name":"m","value":1,"zz":' + deep + b"}\n")


def nest_100000_unclosed(folder: Path) -> Path:
    return _put(folder, GOOD + b"[" * 100_000 + b"\n")


def line_of_200_mb_invalid(folder: Path) -> Path:
    return _put(folder, GOOD + b'{"model_name":"m","value":1,"note":"' + b"x" * 200_000_000)


def line_of_200_mb(folder: Path) -> Path:
    return _put(folder, b'{"model_name":"m","value":1,"zz":"' + b"x" * 200_000_000 + b'"}\n')


def line_of_513_mib(folder: Path) -> Path:
    path = _put(folder, b"")
    os.truncate(path, 513 * MIB)  # a hole: no disk is needed
    return path


def wrong_200000_times(folder: Path) -> Path:
    row = b'{"model_type":"time_series","model_name":"m","horizon":1,"frequency":"1d","history":['
    return _put(folder, row + b",".join([b'"x"'] * 200_000) + b"]}\n")


def gzip_bomb_of_newlines(folder: Path) -> Path:
    return _gzip(folder, b"\n" * MIB, 2048)


def gzip_bomb_of_one_line(folder: Path) -> Path:
    return _gzip(folder, b"x" * MIB, 1024)


def zstd_bomb(folder: Path) -> Path:
    path = folder / "in.jsonl.zst"
    with open(path, "wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as f:
        for _ in range(2048):
            f.write(b"\n" * MIB)
    return path


def zstd_bomb_of_a_window(folder: Path) -> Path:
    # RFC 8878: magic, a descriptor without content size, a window of 2**31 bytes; then one raw
    # block, the last one.
    block = (1 | len(GOOD) << 3).to_bytes(3, "little") + GOOD
    return _put(folder, b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + block, "in.jsonl.zst")


def table_row_of_100_mb(folder: Path) -> Path:
    return _table(folder, note=["x" * 100_000_000])


def table_of_no_rows(folder: Path) -> Path:
    return _table(folder, value=pa.array([], pa.float64()), model_name=pa.array([], pa.string()))


def table_of_tiny_row_groups(folder: Path) -> Path:
    """As Spark leaves them: folders with markers, files with many row groups."""
    for day in range(3):
        inside = folder / "in.parquet" / f"day={day}"
        inside.mkdir(parents=True)
        values = [float(10 * day + i) for i in range(10)]
        pq.write_table(_rows(value=values), inside / "part-0.snappy.parquet", row_group_size=1)
        (inside / "._part-0.crc").write_bytes(b"crc")
    (folder / "in.parquet" / "_SUCCESS").touch()
    return folder / "in.parquet"


def table_of_another_type_in_the_second_file(folder: Path) -> Path:
    (folder / "in.parquet").mkdir()
    for name, value in (("a", 1.0), ("b", "one")):
        pq.write_table(_rows(value=[value]), folder / "in.parquet" / f"{name}.parquet")
    return folder / "in.parquet"


def table_without_a_column_in_the_second_file(folder: Path) -> Path:
    (folder / "in.parquet").mkdir()
    pq.write_table(_rows(), folder / "in.parquet" / "a.parquet")
    pq.write_table(pa.table({"model_name": ["m"]}), folder / "in.parquet" / "b.parquet")
    return folder / "in.parquet"


def table_with_two_columns_of_one_name(folder: Path) -> Path:
    pq.write_table(
        pa.table([["m"], [1.0], [2.0]], names=["model_name", "value", "value"]),
        folder / "in.parquet",
    )
    return folder / "in.parquet"


def table_cut_short(folder: Path) -> Path:
    path = _table(folder, value=[float(i) for i in range(1000)])
    os.truncate(path, path.stat().st_size - 9)
    return path


def table_of_lines(folder: Path) -> Path:
    return _put(folder, GOOD).rename(folder / "in.parquet")


def table_that_is_encrypted(folder: Path) -> Path:
    keys = pe.CryptoFactory(lambda _: _NoSecret())
    config = pe.KmsConnectionConfig()
    how = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["value"]})
    secret = keys.file_encryption_properties(config, how)
    with pq.ParquetWriter(
        folder / "in.parquet", _rows().schema, encryption_properties=secret
    ) as file:
        file.write_table(_rows())
    return folder / "in.parquet"


class _NoSecret(pe.KmsClient):
    """Keeps keys by writing them down."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)


def _rows(**columns) -> pa.Table:
    columns = {"value": [1.0], **columns}
    return pa.table({"model_name": ["m"] * len(columns["value"]), **columns})


def _table(folder: Path, **columns) -> Path:
    pq.write_table(_rows(**columns), folder / "in.parquet")
    return folder / "in.parquet"


def _put(folder: Path, data: bytes, name: str = "in.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _gzip(folder: Path, block: bytes, times: int) -> Path:
    path = folder / "in.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as f:
        for _ in range(times):
            f.write(block)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    name: made
    for name, made in list(globals().items())
    if callable(made) and getattr(made, "__module__", "") == __name__ and not name.startswith("_")
}
