"""What a job does to the loggers of its process."""

from __future__ import annotations

import logging

import pytest

from sheaf_dagster import BatchRunner
from sheaf_dagster.batch.logs import logger_at, logs_told_to
from sheaf_dagster.batch.ray.cluster_config import ClusterConfig
from tests.batch.jobs import spec
from tests.toys import doubler


@pytest.fixture
def logger():
    """A logger that nobody else uses."""
    logger = logging.getLogger("tests.logs.of_a_library")
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(logging.NOTSET)


def test_the_last_of_several_jobs_puts_a_level_back(logger):
    first, second = (logger_at(logger.name, logging.ERROR) for _ in range(2))

    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    while_one_runs = logger.level
    second.__exit__(None, None, None)

    assert (while_one_runs, logger.level) == (logging.ERROR, logging.DEBUG)


def test_a_level_that_somebody_sets_meanwhile_stays(logger):
    with logger_at(logger.name, logging.ERROR):
        logger.setLevel(logging.WARNING)

    assert logger.level == logging.WARNING


def test_messages_are_told_whatever_level_the_program_shows(caplog):
    ours = logging.getLogger("sheaf_dagster")
    before, told = ours.level, []

    with logs_told_to(lambda level, text: told.append((level, text))):
        logging.getLogger("sheaf_dagster.batch").info("waiting")
        logging.getLogger("sheaf_dagster.batch").debug("a detail")

    assert told == [(logging.INFO, "waiting")]
    assert ours.level == before


@pytest.mark.ray
def test_ray_datas_logger_is_quiet_for_a_job_and_then_as_it_was(ray_cluster, write_rows, tmp_path):
    import ray.data  # noqa: F401  (sets its level itself when it is imported)

    logger = logging.getLogger("ray.data")
    before, seen = logger.level, []
    logger.setLevel(logging.WARNING)

    BatchRunner(
        doubler(batch_seconds=0.2),
        ClusterConfig(engine="ray_data"),
        on_progress=lambda _: seen.append(logger.level),
    ).run(spec(write_rows(list(range(40))), tmp_path, batch_size=5, compute="tasks"))
    after = logger.level
    logger.setLevel(before)

    assert logging.ERROR in seen
    assert after == logging.WARNING
