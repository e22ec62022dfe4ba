"""What a job's own threads run of a user's code may leave by any door."""

from __future__ import annotations

import sys

import pytest

from sheaf_dagster import BatchRunner
from tests.batch.jobs import spec
from tests.conftest import read_rows
from tests.toys import doubler


@pytest.mark.ray
def test_an_iterator_of_files_that_exits_ends_the_job_and_frees_its_sinks(
    ray_cluster, write_rows, tmp_path
):
    source = write_rows([1, 2])

    def specs():
        yield spec(source, tmp_path)
        sys.exit(3)

    with pytest.raises(SystemExit):
        list(BatchRunner(doubler()).run_many(specs()))
    again = BatchRunner(doubler()).run(spec(source, tmp_path, compute="local"))

    assert [row["value"] for row in read_rows(again.sink)] == [2, 4]
