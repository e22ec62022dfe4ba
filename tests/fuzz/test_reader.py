"""The fuzz target over what is known to be nasty, and over what hypothesis makes up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.fuzz.reader import read_any

FILES = sorted((ROOT / "tests" / "corpus" / "files").iterdir())
PIECES = st.sampled_from(
    [b"\n", b"\r", b"{", b"}", b'"', b"\\", b":", b",", b"[", b"\x00", b"\xff", b"\xef\xbb\xbf",
     b'{"model_name":"m","value":1}\n', b"1e999", b"\xed\xa0\x80", b"\x1b[2J", b" ", b"\x1f\x8b\x08"]
)  # fmt: skip


def test_the_target_stands_the_corpus_whole_and_cut():
    for path in FILES:
        data = path.read_bytes()
        kind = {".gz": 2, ".zst": 3}.get(path.suffix, 0)
        for cut in {len(data), len(data) // 2}:
            read_any(bytes([kind, 3, 7]) + data[:cut])


@settings(max_examples=150)
@given(st.integers(0, 3), st.integers(0, 255), st.integers(0, 255), st.lists(PIECES, max_size=40))
@example(0, 0, 0, [b"\xef\xbb\xbf"])
def test_the_target_stands_pieces_of_json_in_any_order(how, batch_size, cut, pieces):
    read_any(bytes([how, batch_size, cut]) + b"".join(pieces))


@settings(max_examples=150)
@given(st.binary(max_size=300))
def test_the_target_stands_any_bytes(data):
    read_any(data)


def test_atheris_finds_nothing_in_a_moment():
    pytest.importorskip("atheris")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "-runs=2000", "-max_total_time=5", "-seed=1",
         "-rss_limit_mb=0"],  # the peak that it sees is that of pytest, from before the exec
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "number_of_executed_units" in done.stderr
