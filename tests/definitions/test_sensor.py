"""The arrival sensor, tick by tick, against a real instance."""

from __future__ import annotations

import json
import os
import time

import dagster as dg
import pytest

import sheaf_dagster as sd
from tests.toys import doubler

DAYS = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-31")
ROW = b'{"model_type": "number", "model_name": "m", "value": 1}\n'


class Inbox:
    """A watched folder, the sensor on it, and what each tick asked for."""

    def __init__(self, root, partitions_def=DAYS, source="{root}/in/{partition_key}.jsonl", **args):
        self.root = root
        self.instance = dg.DagsterInstance.ephemeral()
        self.cursor = None
        self.partitions_def = partitions_def
        self.asset = sd.build_batch_inference_asset(
            "predictions",
            source="{root}/in/{partition_key}.jsonl"
            if partitions_def is not None
            else "{root}/in/all.jsonl",
            sink="{root}/out/{partition_key}.jsonl"
            if partitions_def is not None
            else "{root}/out.jsonl",
            partitions_def=partitions_def,
            compute="local",
        )
        args = {"settle_seconds": 0, **args}
        self.sensor = sd.build_jsonl_arrival_sensor(self.asset, source, **args)
        self.resources = {
            "storage": sd.StorageResource(root=str(root)),
            "model": sd.ModelResource.from_spec(doubler()),
            "ray_cluster": sd.RayClusterResource(),
        }
        self.defs = dg.Definitions([self.asset], resources=self.resources, sensors=[self.sensor])

    def drop(self, name: str, data: bytes = ROW, folder: str = "in"):
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def tick(self) -> dg.SensorResult:
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            definitions=self.defs,
            resources={"storage": self.resources["storage"]},
        ) as context:
            self.result = self.sensor(context)
        self.cursor = self.result.cursor
        for request in self.result.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        return self.result

    def asked(self) -> list[str]:
        """Keys of the next tick's runs; ranges as ``first..last``."""
        return [
            r.partition_key
            or "..".join(
                r.tags[f"dagster/asset_partition_range_{end}"]
                for end in ("start", "end")
                if f"dagster/asset_partition_range_{end}" in r.tags
            )
            for r in self.tick().run_requests or ()
        ]

    @property
    def reason(self) -> str:
        return self.result.skip_reason.skip_message


@pytest.fixture
def inbox(tmp_path):
    return lambda *args, **kwargs: Inbox(tmp_path, *args, **kwargs)


def test_each_version_of_a_file_is_asked_for_once(inbox):
    box = inbox()
    assert box.asked() == []
    same_second = time.time()
    for day in ("02", "01"):
        os.utime(box.drop(f"2026-01-{day}.jsonl"), (same_second, same_second))
    assert sorted(box.asked()) == ["2026-01-01", "2026-01-02"]
    assert box.asked() == []
    assert "no new files among 2" in box.reason

    # A third one of the same second is not lost, and the last one seen may vanish.
    os.utime(box.drop("2026-01-03.jsonl"), (same_second, same_second))
    (box.root / "in/2026-01-02.jsonl").unlink()
    assert box.asked() == ["2026-01-03"]
    assert box.asked() == []

    box.drop("2026-01-01.jsonl", ROW * 2)
    assert box.asked() == ["2026-01-01"], "changed content runs again"
    assert box.asked() == []


def test_run_keys_differ_by_version_and_survive_a_repeated_tick(inbox):
    box = inbox()
    box.drop("2026-01-01.jsonl")
    (first,) = box.tick().run_requests
    before = box.cursor
    box.drop("2026-01-01.jsonl", ROW * 2)
    (second,) = box.tick().run_requests
    assert first.run_key != second.run_key
    # The daemon died before it saved the tick: the next one asks for the same run.
    box.cursor = before
    (again,) = box.tick().run_requests
    assert again.run_key == second.run_key


def test_files_that_are_not_ready_wait_and_say_why(inbox):
    box = inbox(settle_seconds=60)
    old = time.time() - 120
    for name, data in {
        "2026-01-01.jsonl.tmp": ROW,
        "2026-01-02.jsonl.part": ROW,
        ".2026-01-03.jsonl": ROW,
        "2026-01-04.jsonl": b"",
        "2026-02-04.jsonl": ROW,
        "readme.txt": b"hello",
        "2026-1-7.jsonl": ROW,
    }.items():
        os.utime(box.drop(name, data), (old, old))
    growing = box.drop("2026-01-05.jsonl")

    assert box.asked() == []
    for remark in (
        "unfinished by its name: 2026-01-01.jsonl.tmp, 2026-01-02.jsonl.part",
        "empty: 2026-01-04.jsonl",
        "modified just now: 2026-01-05.jsonl",
        "no such partition (yet): 2026-02-04.jsonl, 2026-1-7.jsonl",
        "name does not fit the template: readme.txt",
    ):
        assert remark in box.reason

    os.utime(growing, (old, old))
    (box.root / "in/2026-01-01.jsonl.tmp").rename(box.root / "in/2026-01-01.jsonl")
    os.utime(box.drop("2026-01-04.jsonl"), (old, old))
    assert sorted(box.asked()) == ["2026-01-01", "2026-01-04", "2026-01-05"]


def test_a_file_for_tomorrow_runs_when_tomorrow_is_a_partition(inbox, monkeypatch):
    stations = dg.DynamicPartitionsDefinition(name="stations")
    both = dg.MultiPartitionsDefinition(
        {"day": dg.StaticPartitionsDefinition(["mon"]), "station": stations}
    )
    box = inbox(both, source="{root}/in/{day}/{station}.jsonl")
    box.drop("mon/north.jsonl")
    assert box.asked() == []
    assert "no such partition (yet): mon/north.jsonl" in box.reason
    box.instance.add_dynamic_partitions("stations", ["north"])
    assert box.asked() == ["mon|north"]
    assert box.asked() == []


def test_new_keys_of_dynamic_partitions_are_added(inbox):
    box = inbox(dg.DynamicPartitionsDefinition(name="files"))
    box.drop("b.jsonl")
    box.drop("a.jsonl")
    box.drop("evil..name.jsonl")
    assert sorted(box.asked()) == ["a", "b", "evil..name"]
    assert set(box.instance.get_dynamic_partitions("files")) == {"a", "b", "evil..name"}
    box.drop(" blank.jsonl")
    assert box.asked() == []
    assert "unsafe partition key:  blank.jsonl" in box.reason


def test_neighbours_share_a_run_up_to_the_limit(inbox):
    box = inbox(files_per_run=3)
    for day in (1, 2, 3, 4, 6, 9, 10):
        box.drop(f"2026-01-{day:02}.jsonl")
    assert box.asked() == [
        "2026-01-01..2026-01-03",
        "2026-01-04",
        "2026-01-06",
        "2026-01-09..2026-01-10",
    ]
    assert box.asked() == []


def test_dynamic_keys_that_come_together_share_a_run(inbox):
    box = inbox(dg.DynamicPartitionsDefinition(name="files"), files_per_run=10)
    for i, name in enumerate("zmb"):
        os.utime(box.drop(f"{name}.jsonl"), (i + 1, i + 1))
    assert box.asked() == ["z..b"]
    box.drop("q.jsonl")
    assert box.asked() == ["q"]


def test_a_tick_asks_for_a_bounded_number_oldest_first(inbox):
    box = inbox(max_files_per_tick=2)
    for day in range(1, 6):
        os.utime(box.drop(f"2026-01-{day:02}.jsonl"), (100 - day, 100 - day))
    assert box.asked() == ["2026-01-05", "2026-01-04"]
    assert box.asked() == ["2026-01-03", "2026-01-02"]
    assert box.asked() == ["2026-01-01"]
    assert box.asked() == []


def test_existing_files_can_be_skipped_and_a_reset_asks_for_all(inbox):
    box = inbox(skip_existing=True)
    box.drop("2026-01-01.jsonl")
    assert box.asked() == []
    box.drop("2026-01-02.jsonl")
    assert box.asked() == ["2026-01-02"]

    all_again = inbox()
    all_again.instance, all_again.cursor = box.instance, None
    assert all_again.asked() == ["2026-01-01", "2026-01-02"]


def test_the_cursor_stays_small(inbox):
    box = inbox(dg.DynamicPartitionsDefinition(name="files"), max_files_per_tick=5000)
    for i in range(3000):
        box.drop(f"{i}.jsonl")
    assert len(box.asked()) == 3000
    box.drop("one-more.jsonl")
    assert box.asked() == ["one-more"]
    assert len(box.cursor) < 200


def test_an_unpartitioned_asset_runs_when_its_file_changes(inbox):
    box = inbox(None, source=None)
    assert box.asked() == []
    box.drop("all.jsonl")
    assert box.asked() == [""]
    assert box.asked() == []
    box.drop("all.jsonl", ROW * 3)
    assert box.asked() == [""]


def test_the_run_reads_the_file_that_landed(inbox):
    box = inbox(source="{root}/landing/{partition_key}.jsonl")
    box.drop("2026-01-05.jsonl", folder="landing")
    (request,) = box.tick().run_requests

    result = dg.materialize(
        [box.asset],
        resources=box.resources,
        partition_key=request.partition_key,
        run_config=request.run_config,
    )

    assert result.success
    rows = (box.root / "out/2026-01-05.jsonl").read_text().splitlines()
    assert [json.loads(r)["value"] for r in rows] == [2]


def test_mistakes_are_refused_when_the_sensor_is_made(tmp_path):
    asset = Inbox(tmp_path).asset
    with pytest.raises(sd.SpecError, match=r"unknown placeholder \{day\}"):
        sd.build_jsonl_arrival_sensor(asset, "{root}/{day}.jsonl")
    with pytest.raises(sd.SpecError, match="same for every partition"):
        sd.build_jsonl_arrival_sensor(asset, "{root}/in.jsonl")
    with pytest.raises(sd.SpecError, match="at least 1"):
        sd.build_jsonl_arrival_sensor(asset, files_per_run=0)

    @dg.asset(partitions_def=DAYS)
    def other() -> None: ...

    with pytest.raises(sd.SpecError, match="doesn't say where its source is"):
        sd.build_jsonl_arrival_sensor(other)
    broken = Inbox(tmp_path)
    broken.cursor = "from another sensor"
    with pytest.raises(sd.SpecError, match="reset it"):
        broken.tick()


def test_a_template_in_the_middle_of_a_name_is_matched(tmp_path):
    box = Inbox(tmp_path, source="{root}/in/{partition_key}/day-{partition_key}.v1.jsonl")
    box.drop("2026-01-05/day-2026-01-05.v1.jsonl")
    box.drop("2026-01-06/day-2026-01-07.v1.jsonl")
    assert box.asked() == ["2026-01-05"]
