"""How often Python looks for garbage while chunks run."""

from __future__ import annotations

import gc

from sheaf_dagster.batch.worker.memory import rare_collections


def test_collections_are_rare_while_jobs_run_and_as_usual_after_the_last():
    usual = gc.get_threshold()
    try:
        gc.set_threshold(700, 10, 10)
        with rare_collections():
            with rare_collections():
                assert gc.get_threshold() == (10_000, 10, 10)
            assert gc.get_threshold() == (10_000, 10, 10)
        assert gc.get_threshold() == (700, 10, 10)
        for own in ((0, 10, 10), (50_000, 5, 5)):  # whoever has none, or fewer, keeps to that
            gc.set_threshold(*own)
            with rare_collections():
                assert gc.get_threshold() == own
    finally:
        gc.set_threshold(*usual)
