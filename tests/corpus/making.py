"""The cases of the corpus that are too large to keep: written when they are needed."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

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
