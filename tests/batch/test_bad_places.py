"""Sources and sinks that can't be what they are asked to be, and disks that fill up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from tests.batch.jobs import spec
from tests.conftest import read_rows
from tests.toys import doubler


def run(source, sink, **fields):
    job = BatchSpec(source=str(source), sink=str(sink), **{"compute": "local", **fields})
    return BatchRunner(doubler(), on_progress=None).run(job)


# -- the same file by another name -----------------------------------------------------------


def by_a_dot(source: Path, folder: Path) -> str:
    return f"{folder}/./x/../{source.name}"


def by_uri(source: Path, folder: Path) -> str:
    return f"file://{source}"


def by_a_link_to_it(source: Path, folder: Path) -> str:
    (folder / "link.jsonl").symlink_to(source)
    return str(folder / "link.jsonl")


def by_a_linked_folder(source: Path, folder: Path) -> str:
    (folder / "elsewhere").symlink_to(folder)
    return str(folder / "elsewhere" / source.name)


def by_a_hard_link(source: Path, folder: Path) -> str:
    os.link(source, folder / "hard.jsonl")
    return str(folder / "hard.jsonl")


@pytest.mark.parametrize(
    "other", [by_a_dot, by_uri, by_a_link_to_it, by_a_linked_folder, by_a_hard_link]
)
def test_a_sink_that_is_the_source_is_refused_whatever_it_is_called(write_rows, tmp_path, other):
    source = Path(write_rows([1, 2]))
    before = source.read_bytes()
    alias = other(source, tmp_path)

    for pair in ((source, alias), (alias, source)):
        with pytest.raises((sd.SpecError, ValueError), match="source and sink are the same file"):
            run(*pair)

    assert source.read_bytes() == before


def test_a_link_as_source_or_as_sink_is_fine_where_they_differ(write_rows, tmp_path):
    (tmp_path / "link.jsonl").symlink_to(write_rows([1, 2]))
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    run(tmp_path / "link.jsonl", tmp_path / "out.jsonl")
    assert [r["value"] for r in read_rows(tmp_path / "out.jsonl")] == [2, 4]


# -- sources ---------------------------------------------------------------------------------


def test_what_is_no_file_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "gone")
    expected = {
        tmp_path / "pipe.jsonl": "not a regular file",
        "/dev/zero": "not a regular file",
        tmp_path / "folder.jsonl": "is a folder, and no .parquet or .jsonl file is in it",
        tmp_path / "loop.jsonl": "symbolic links",
        tmp_path / "dangling.jsonl": "does not exist",
        tmp_path / "pipe.jsonl" / "x": "does not exist",
    }
    for source, message in expected.items():
        with pytest.raises(sd.SourceError, match=message):
            run(source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def appended(path: Path) -> None:
    with open(path, "a") as f:
        f.write("{}\n")


def replaced(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(path.read_bytes().replace(b"1", b"2"))
    os.replace(new, path)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def deleted(path: Path) -> None:
    path.unlink()


CHANGES = [
    *(({"compute": "local"}, change) for change in (appended, replaced, truncated, deleted)),
    pytest.param({"compute": "tasks"}, replaced, marks=pytest.mark.ray),
]


@pytest.mark.parametrize(("mode", "change"), CHANGES, indirect=["mode"])
def test_a_source_that_changes_meanwhile_is_an_error_and_the_old_output_stays(
    mode,
    write_rows,
    tmp_path,
    change,
):
    source = Path(write_rows(list(range(400))))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "out.jsonl").write_text("old\n")
    done = []

    def once(progress) -> None:
        if progress.rows_done and not done:
            done.append(change(source))

    runner = BatchRunner(doubler(batch_seconds=0.02), on_progress=once)
    with pytest.raises(sd.SourceError, match=r"changed|deleted|cut short|not visible"):
        runner.run(spec(source, tmp_path, batch_size=4, **mode))

    assert done
    assert (tmp_path / "out" / "out.jsonl").read_text() == "old\n"


# -- sinks -----------------------------------------------------------------------------------


def test_places_that_cannot_hold_a_file_are_named(write_rows, tmp_path):
    source = write_rows([1])
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.jsonl").mkdir()
    expected = {
        tmp_path / "folder.jsonl": "is a directory; name a file",
        tmp_path / "file" / "out.jsonl": "can't be made|can't be written",
        tmp_path / ("n" * 300 + ".jsonl"): "File name too long",
        "/proc/nowhere/out.jsonl": "can't be made",
    }
    for sink, message in expected.items():
        with pytest.raises(sd.SinkError, match=message):
            run(source, sink)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.jsonl", "in.jsonl"]


@pytest.fixture
def mounted(tmp_path):
    """Mounts small disks of their own; takes them away again."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip("mounting is not permitted here")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_read_only_disk_is_named(mounted, write_rows):
    disk = mounted("size=1m")
    (disk / "out.jsonl").write_text("old\n")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(sd.SinkError, match=r"Read-only file system"):
        run(write_rows([1]), disk / "out.jsonl")
    assert (disk / "out.jsonl").read_text() == "old\n"


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kib", [16, 40, 64, 100, 140, 180, 220, 260])
def test_a_disk_that_fills_up_is_one_error_and_what_was_there_stays(
    mounted, write_rows, tmp_path, kib, suffix
):
    disk = mounted(f"size={kib}k")
    (disk / f"out.jsonl{suffix}").write_text("old\n")
    source = write_rows(list(range(700)), note=os.urandom(40).hex())
    whole = tmp_path / f"whole.jsonl{suffix}"
    run(source, whole, batch_size=8)

    try:
        run(source, disk / f"out.jsonl{suffix}", batch_size=8)
    except sd.SinkError as e:
        assert "No space left on device" in str(e)
        assert (disk / f"out.jsonl{suffix}").read_text() == "old\n"
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        run(source, disk / f"out.jsonl{suffix}", batch_size=8)

    assert (disk / f"out.jsonl{suffix}").read_bytes() == whole.read_bytes()
    assert os.listdir(disk) == [f"out.jsonl{suffix}"]


def test_a_compressed_source_that_does_not_fit_unpacked_is_one_error(mounted, tmp_path):
    import gzip

    disk = mounted("size=64k")
    row = b'{"model_name":"m","value":1}\n'
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(row * 10_000))
    with pytest.raises(sd.SheafError, match="No space left on device"):
        run(tmp_path / "in.jsonl.gz", disk / "out.jsonl")
    assert os.listdir(disk) == []
