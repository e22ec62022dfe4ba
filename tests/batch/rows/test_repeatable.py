"""An error row is the same at each run: nothing of the process that met it reaches its bytes."""

from __future__ import annotations

import io
import os
import tempfile
import threading
import uuid
from datetime import UTC, datetime

import pytest

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.rows.repeatable import repeatable
from tests.batch.jobs import here_and_in_workers, spec
from tests.toys import Doubler, NumberRequest, shaped


class Chatty(Doubler):
    """Fails each third row, with all that an error's text may tell of its process."""

    def batch_predict(self, requests):
        for request in requests:
            if request.value % 3 == 0:
                with tempfile.NamedTemporaryFile(suffix=".png", dir=tempfile.mkdtemp()) as f:
                    raise ValueError(
                        f"cannot identify image file {io.BytesIO()} in {f.name} or {tempfile.mktemp()}; "
                        f"{self.infer}, {threading.current_thread()!r}, pid {os.getpid()}, "
                        f"{id(f):#x}, trace {uuid.uuid4()}, at {datetime.now(UTC)}, after "
                        f"{datetime.now().microsecond / 1e6:.4f} s: {request.note}"
                    )
        return super().batch_predict(requests)


@pytest.mark.parametrize(
    ("said", "steady"),
    [
        ("<_io.BytesIO object at 0x7f21bc5e8d60>", "<_io.BytesIO object>"),
        ("device pointer 0x7f21bc5e8d60", "device pointer 0x…"),
        ("error 0x1f", "error 0x1f"),
        ("'/tmp/tmpq2h_x81z/page.png' is empty", "'/tmp/…/page.png' is empty"),
        ("no room for /tmp/sheaf-zz81hd72.", "no room for /tmp/…"),
        ("/data/tmpq2h_x81z/page.png", "/data/tmp…/page.png"),
        ("worker (pid=1234) left", "worker (pid=…) left"),
        ("can't process 12 rows", "can't process 12 rows"),
        ("Thread-12 stopped", "Thread-… stopped"),
        ("at 2026-01-05 10:11:12,123 it ended", "at … it ended"),
        ("at 2026-01-05T10:11:12.123Z", "at …"),
        ("waited 3.2183 s of 30.0 s", "waited … s of 30.0 s"),
        ("expected 3.25, got 0.125 of them", "expected 3.25, got 0.125 of them"),
        ("'2026-01-05' is not a number", "'2026-01-05' is not a number"),
    ],
)
def test_what_changes_from_run_to_run_is_left_out(said, steady):
    assert repeatable(said) == steady


@pytest.mark.parametrize(
    "value",
    [
        "/tmp/inbox/a.png",
        "6f1c1e0a-97a6-4c3e-8d5e-1f0a4f0c9b11",
        "2026-01-05T10:11:12Z",
        "0x7f21bc5e8d60",
        "1.125 s",
    ],
)
def test_what_the_row_itself_says_stays(value):
    row = NumberRequest(model_name="m", value=1, note=value)

    assert repeatable(f"can't read {value}", row) == f"can't read {value}"


@pytest.mark.parametrize("said", ["pid 51", "Thread-5 (run)", "thread=5", "ThreadPoolExecutor-0_1"])
def test_digits_that_a_rows_id_has_too_are_not_what_it_says(said):
    id = "00000000-0000-4000-8000-000000000051"
    row = NumberRequest(request_id=id, model_name="m", value=1, note="Thread-7")

    assert "…" in repeatable(said, row)
    assert repeatable("in Thread-7", row) == "in Thread-7"


def test_a_moment_of_the_day_that_a_row_names_is_not_what_it_says():
    row = NumberRequest(
        model_name="m", value=10.123, note="sold on 2026-01-05, at 2026-01-04 09:30"
    )

    assert repeatable("at 2026-01-05 10:11:12.5 after 0.12 s", row) == "at … after … s"
    assert repeatable("none at 2026-01-04T09:30:00Z", row) == "none at 2026-01-04T09:30:00Z"


@here_and_in_workers
def test_the_same_file_gives_the_same_error_rows_each_time(write_rows, tmp_path, mode):
    source = write_rows(list(range(40)), note="/tmp/kept/this.png")
    model = shaped(Chatty)
    written = set()

    for _ in range(3):
        job = spec(source, tmp_path, on_error="record", batch_size=7, resume=False, **mode)
        result = BatchRunner(model).run(job)
        with open(result.sink, "rb") as f:
            written.add(f.read())

    (data,) = written
    assert result.error_rows == 14
    assert data.count(b"/tmp/kept/this.png") == 40
    assert b"0x7" not in data


def test_the_error_that_ends_a_job_is_as_steady(write_rows, tmp_path):
    source = write_rows([1, 2, 3])
    model = shaped(Chatty)
    said = set()

    for _ in range(3):
        with pytest.raises(sd.PredictError) as caught:
            BatchRunner(model).run(spec(source, tmp_path, compute="local"))
        said.add(str(caught.value))

    (text,) = said
    assert "line 3" in text
