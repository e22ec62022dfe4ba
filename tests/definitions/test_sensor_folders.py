"""Tables that land, and folders of files that are one source, as the arrival sensor sees them."""

from __future__ import annotations

import io
import os
import time

import pyarrow as pa
import pyarrow.parquet as pq

import sheaf_dagster as sd
from tests.conftest import read_rows
from tests.definitions.inbox import MANY, ROW, Disk, Inbox

FIELDS = sd.BatchOptions(columns={"value": "amount"}, fields={"model_name": "m"})


def table(*values: float) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"amount": [float(v) for v in values]}), file)
    return file.getvalue()


def aged(path) -> None:
    if path is not None and os.path.exists(str(path)):
        os.utime(path, (time.time() - 120,) * 2)


def answers(box: Inbox, request) -> list[float]:
    result = box.run(request)
    assert result.success
    assert isinstance(box.files, Disk)
    return [r["value"] for r in read_rows(box.files.folder / f"out/{request.partition_key}.jsonl")]


def test_a_table_that_lands_is_run_and_run_again_when_it_changes(inbox):
    box = inbox(source="{root}/in/{partition_key}.parquet", batch=FIELDS)
    box.drop("2026-01-02.parquet", table(1, 2))
    box.drop("2026-01-03.parquet.tmp", table(1, 2))

    (request,) = box.tick().run_requests

    assert answers(box, request) == [2.0, 4.0]
    assert box.asked() == []
    box.drop("2026-01-02.parquet", table(1, 2, 3))
    (request,) = box.tick().run_requests
    assert answers(box, request) == [2.0, 4.0, 6.0]


def test_a_folder_is_one_source_and_runs_again_when_its_files_change(files, instance):
    box = Inbox(files, instance, source="{root}/in/{partition_key}/", batch=FIELDS)
    for name in ("part-1.parquet", "sub=3/part-0.parquet", "_SUCCESS", ".part-1.parquet.crc"):
        box.drop(f"2026-01-02/{name}", b"" if name.startswith("_") else table(2, 3))
    box.drop("2026-01-04.parquet", table(1))

    (request,) = box.tick().run_requests

    assert request.partition_key == "2026-01-02"
    if isinstance(files, Disk):
        assert answers(box, request) == [4.0, 6.0, 4.0, 6.0]
    assert box.asked() == []
    box.drop("2026-01-02/_metadata", b"x")
    assert box.asked() == [], "no file of rows"
    box.drop("2026-01-02/part-2.parquet", table(5))
    assert box.asked() == ["2026-01-02"], "one more"
    box.drop("2026-01-02/part-2.parquet", table(5, 6))
    assert box.asked() == ["2026-01-02"], "another one"
    files.remove("in/2026-01-02/part-2.parquet")
    assert box.asked() == [], "as it was asked for before"
    files.remove("in/2026-01-02/part-1.parquet")
    assert box.asked() == ["2026-01-02"], "one less"


def test_a_folder_is_ready_once_all_of_it_is(files, instance):
    box = Inbox(files, instance, source="{root}/in/{partition_key}.parquet", settle_seconds=60)
    made = [
        box.drop(f"2026-01-0{day}.parquet/{name}", table(1))
        for day, name in enumerate(
            ("part-0.parquet", "_temporary/0/part-0.parquet", "part-0.parquet.tmp", "_SUCCESS"), 1
        )
    ]
    assert box.asked() == []
    assert "modified just now: 2026-01-01.parquet" in box.reason
    assert "unfinished by its name: 2026-01-02.parquet, 2026-01-03.parquet" in box.reason
    assert "2026-01-04" not in box.reason
    if isinstance(files, Disk):
        aged(made[0])
        assert box.asked() == ["2026-01-01"]


def test_lines_in_folders_and_new_keys(inbox):
    box = inbox(MANY, source="{root}/in/{partition_key}")
    box.drop("monday/a.jsonl", ROW)
    box.drop("monday/b.jsonl.gz", b"")
    box.drop("tuesday/notes.txt", b"hello")

    assert box.asked() == ["monday"]
    assert box.instance.get_dynamic_partitions("files") == ["monday"]


def test_one_folder_without_partitions_is_looked_at_alone(inbox):
    box = inbox(None, source="{root}/in/all")
    box.drop("all/a.jsonl", ROW)
    box.drop("other/b.jsonl", ROW)
    (request,) = box.tick().run_requests
    assert box.run(request).success
    assert box.asked() == []
    box.drop("all/c.jsonl", ROW)
    assert box.asked() == [None]
    assert box.tick().run_requests == []
