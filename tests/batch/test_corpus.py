"""Files that are wrong in every way we know: one clear error each, or the rows that are meant."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec
from tests.conftest import ROOT, read_rows
from tests.corpus.making import MAKERS
from tests.toys import doubler

FOLDER = ROOT / "tests" / "corpus"
CASES = json.loads((FOLDER / "index.json").read_text())
SMALL = [c for c in CASES if not c.get("large")]
LARGE = [c for c in CASES if c.get("large")]
NAMED = {c["name"]: c for c in CASES}

FULL = bool(os.environ.get("SHEAF_CORPUS"))
"""``make test-corpus``: the huge files too, in processes whose memory is measured."""

MAX_MEMORY_MB = 1500
"""Of a process with a row of 100 or 200 MB: its bytes, a copy while it is split, its parsed form."""


def model_of(case: dict) -> ModelSpec:
    if case.get("model_type") == "time_series":
        return ModelSpec(name="m", model_type="time_series", backend="statsforecast")
    return doubler()


def place(case: dict, folder: Path) -> Path:
    if "made" in case:
        return MAKERS[case["made"]](folder)
    path = FOLDER / "files" / case["file"]
    assert path.exists()
    return path


def outcome(case: dict, source: Path, folder: Path, **mode) -> tuple[Exception | None, Path]:
    """What a job over the file ends with, and its sink."""
    spec = BatchSpec(
        source=str(source), sink=str(folder / "out" / "out.jsonl"), **{"compute": "local", **mode}
    )
    try:
        BatchRunner(model_of(case), on_progress=None).run(spec)
    except sd.SheafError as e:
        return e, Path(spec.sink)
    return None, Path(spec.sink)


def check_error(case: dict, error: Exception | None, sink: Path) -> None:
    assert error is not None, "it should have been refused"
    assert type(error).__name__ == case["error"]
    assert len(str(error)) < 5000
    assert str(error).replace("\n", "").isprintable()
    assert not sink.exists()
    if isinstance(error, sd.InputValidationError):
        first = error.report.violations[0]
        assert (first.line, first.field) == (case["line"], case["field"])
        assert case["message"] in first.message
        if case.get("invalid_rows", 1) is not None:
            assert error.report.invalid_rows == case.get("invalid_rows", 1)
    else:
        assert re.search(re.escape(case["message"]), str(error))


def test_the_corpus_is_large_and_every_file_is_used():
    files = {c["file"] for c in CASES if "file" in c}
    assert len(CASES) >= 80
    assert len(NAMED) == len(CASES)
    assert files == {p.name for p in (FOLDER / "files").iterdir()}
    assert {c["made"] for c in CASES if "made" in c} == set(MAKERS)


def test_the_docs_say_how_large_the_corpus_is():
    said = " ".join((ROOT / "docs" / "reliability.md").read_text().split())

    assert f"lists {len(CASES)} files" in said
    assert sum(bool(c.get("large")) for c in CASES) == 9
    assert "Nine are so large that only `make test-corpus` makes and reads them" in said


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c["name"])
def test_each_file_is_refused_clearly_or_read_as_meant(case, tmp_path):
    source = place(case, tmp_path)
    spec = BatchSpec(source=str(source), sink=str(tmp_path / "out" / "out.jsonl"))

    error, sink = outcome(case, source, tmp_path)

    if "error" in case:
        check_error(case, error, sink)
        if case["error"] == "InputValidationError":
            assert not BatchRunner(model_of(case)).validate(spec).ok
            assert not sink.parent.exists() or os.listdir(sink.parent) == []
        else:
            with pytest.raises(sd.SourceError, match=re.escape(case["message"])):
                BatchRunner(model_of(case)).validate(spec)
        return
    assert error is None
    rows = read_rows(sink)
    assert len(rows) == case["rows"]
    assert BatchRunner(model_of(case)).validate(spec).rows == case["rows"]
    if "values" in case:
        assert [r["value"] for r in rows] == case["values"]
    if "note" in case:
        assert rows[0]["note"] == case["note"]


ON_RAY = [
    "bom", "u2028_in_string", "invalid_utf8", "nest_100000_list", "gzip_second_member",
    "zstd_frames", "value_nan", "many_bad_rows",
]  # fmt: skip


@pytest.mark.ray
@pytest.mark.parametrize("name", ON_RAY)
def test_on_ray_they_come_to_the_same(ray_cluster, name, tmp_path):
    case = NAMED[name]
    error, sink = outcome(case, place(case, tmp_path), tmp_path, compute="tasks")
    if "error" in case:
        check_error(case, error, sink)
    else:
        assert error is None
        assert len(read_rows(sink)) == case["rows"]


MEASURED = """
import json, sys
from pathlib import Path
from tests.batch.test_corpus import NAMED, outcome
case, source, folder = NAMED[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
error, sink = outcome(case, source, folder)
# Not getrusage: a child begins with its parent's maximum.
(peak,) = [int(x.split()[1]) // 1024 for x in open("/proc/self/status") if x.startswith("VmHWM")]
lines = sink.read_bytes().count(b"\\n") if sink.exists() else None
first = error.report.violations[0] if hasattr(error, "report") else None
print(json.dumps({
    "peak_mb": peak, "lines": lines, "error": type(error).__name__, "text": str(error),
    "line": first and first.line, "field": first and first.field,
}))
"""


@pytest.mark.parametrize(
    "case", LARGE if FULL else [NAMED["zstd_bomb_of_a_window"]],
    ids=lambda c: c["name"],
)  # fmt: skip
def test_huge_files_need_bounded_memory(case, tmp_path):
    source = place(case, tmp_path)

    done = subprocess.run(
        [sys.executable, "-c", MEASURED, case["name"], str(source), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(case["name"], said["peak_mb"], "MB")
    if log := os.environ.get("SHEAF_CORPUS_LOG"):
        with open(log, "a") as f:
            f.write(f"{case['name']} {said['peak_mb']} MB\n")
    assert said["peak_mb"] < (MAX_MEMORY_MB if "00_mb" in case["name"] else 500)
    if "error" in case:
        assert said["error"] == case["error"]
        assert case["message"] in said["text"]
        assert len(said["text"]) < 5000
        if "line" in case:
            assert (said["line"], said["field"]) == (case["line"], case["field"])
    else:
        assert said["lines"] == case["rows"], said
