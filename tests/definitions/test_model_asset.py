"""A changed model, as Dagster sees it."""

from __future__ import annotations

import json

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

import sheaf_dagster as sd
from sheaf_dagster.backends import weights_digest
from sheaf_dagster.definitions import rollouts
from tests.conftest import read_rows
from tests.definitions.project import DAYS, KEY, Project
from tests.toys import scaler

MODEL = dg.AssetKey("scaler")
KEYS = DAYS.get_partition_keys()[:3]
FRESH, STALE = StaleStatus.FRESH, StaleStatus.STALE


class ModelProject(Project):
    """A partitioned asset, its model as an asset, and weights in a file."""

    def __init__(self, root, **fields) -> None:
        self.model_asset = sd.build_model_asset(MODEL)
        super().__init__(root, DAYS, **{"model_asset": self.model_asset, **fields})
        self.weights = root / "factor.txt"
        self.weights.write_text("2")
        resources = {
            **self.defs.resources,
            "model": sd.ModelResource.from_spec(scaler(weights=str(self.weights))),
        }
        self.defs = dg.Definitions(
            assets=[*self.defs.assets, self.model_asset], resources=resources
        )
        for key in KEYS:
            self.write(key, [1, 2])

    def observe(self) -> None:
        job = dg.define_asset_job("look", selection=dg.AssetSelection.assets(MODEL))
        defs = dg.Definitions(assets=self.defs.assets, resources=self.defs.resources, jobs=[job])
        assert defs.resolve_job_def("look").execute_in_process(instance=self.instance).success

    def observations(self) -> list[dg.AssetObservation]:
        found = self.instance.fetch_observations(dg.AssetRecordsFilter(asset_key=MODEL), limit=99)
        return [r.event_log_entry.asset_observation for r in reversed(found.records)]

    def statuses(self) -> list[StaleStatus]:
        resolver = CachingStaleStatusResolver(
            self.instance,
            self.defs.resolve_asset_graph(),
            LoadingContextForTest(self.instance),
        )
        return [resolver.get_status(KEY, key) for key in KEYS]


@pytest.fixture
def project(tmp_path) -> ModelProject:
    return ModelProject(tmp_path)


def test_other_weights_make_what_the_earlier_ones_made_stale(project):
    assert project.run(KEYS[0], KEYS[-1], only=True).success
    assert project.statuses() == [FRESH] * 3

    project.weights.write_text("3")
    project.observe()
    seen = project.statuses()
    assert project.run(key=KEYS[1], only=True).success

    assert seen == [STALE] * 3
    assert project.statuses() == [STALE, FRESH, STALE]
    assert [r["value"] for r in read_rows(project.root / "out" / f"{KEYS[1]}.jsonl")] == [3, 6]


def test_an_observation_says_how_many_rows_a_backfill_would_run(project):
    assert project.run(KEYS[0], KEYS[-1], only=True).success
    project.observe()
    project.weights.write_text("3")
    project.observe()
    assert project.run(key=KEYS[1], only=True).success
    project.observe()

    said = [o.metadata for o in project.observations()[1:]]

    assert [md["outdated_partitions"].value for md in said] == [0, 3, 2]
    assert [md["outdated_rows"].value for md in said] == [0, 6, 4]
    assert "rollout" not in said[0]
    assert "| predictions | 2 | 4 |" in said[2]["rollout"].value


def test_an_observation_says_where_it_has_not_looked_at_all(project, monkeypatch):
    monkeypatch.setattr(rollouts, "_LOOKED_AT", 2)
    assert project.run(KEYS[0], KEYS[-1], only=True).success
    project.weights.write_text("3")

    project.observe()

    md = project.observations()[-1].metadata
    assert md["outdated_rows"].value == 4
    assert "| predictions | 2 or more | 4 or more |" in md["rollout"].value
    assert "newest 2 materialisations" in md["rollout"].value


def test_a_run_itself_notices_that_the_model_has_changed(project):
    assert project.run(KEYS[0], KEYS[-1], only=True).success
    assert project.run(key=KEYS[0], only=True).success
    project.weights.write_text("3")

    assert project.run(key=KEYS[0], only=True).success

    first, second = project.observations()
    assert project.statuses() == [FRESH, STALE, STALE]
    assert first.metadata["weights"].value != second.metadata["weights"].value
    assert second.metadata["weights"].value == weights_digest(str(project.weights))


def test_observing_the_same_model_again_changes_nothing(project):
    assert project.run(KEYS[0], KEYS[-1], only=True).success

    project.observe()

    assert project.statuses() == [FRESH] * 3
    versions = {o.tags["dagster/data_version"] for o in project.observations()}
    assert len(versions) == 1


def test_a_secret_of_the_models_arguments_reaches_the_model_and_nothing_else(tmp_path, monkeypatch):
    log = tmp_path / "calls.log"
    monkeypatch.setenv("CALL_LOG", str(log))
    project = ModelProject(tmp_path)
    kwargs = {"call_log": dg.EnvVar("CALL_LOG"), "storage_options": {"hf_token": "ijklmnop"}}
    spec = sd.ModelResource(
        name="m", model_type="number", backend="tests.toys:Confidant", backend_kwargs=kwargs
    )
    project.defs = dg.Definitions(
        assets=project.defs.assets, resources={**project.defs.resources, "model": spec}
    )

    result = project.run(key=KEYS[0], only=True)

    (observed,) = project.observations()
    records = project.instance.all_logs(result.run_id)
    assert log.read_text() == "2\n"
    assert observed.metadata["backend_kwargs"].value == {
        "call_log": {"env": "CALL_LOG"},
        "storage_options": {"hf_token": "***"},
    }
    assert not [r for r in records if "ijklmnop" in str(r.dagster_event)]


def test_a_retry_runs_what_the_earlier_model_has_made(project):
    project.write(KEYS[2], ["x"])
    first = project.run(KEYS[0], KEYS[-1])
    project.write(KEYS[2], [3])
    project.weights.write_text("3")

    again = project.run(KEYS[0], KEYS[-1], parent=first.run_id)

    assert not first.success
    assert again.success
    assert project.logged(again.run_id) == KEYS
    versions = {r.asset_materialization.metadata["model_version"].value for r in project.records()}
    assert len(versions) == 2


def test_a_model_asset_stands_beside_other_upstream_assets(tmp_path):
    catalogue = dg.asset(name="catalogue")(lambda: None)
    project = ModelProject(tmp_path, deps=[catalogue, "somewhere_else"])
    project.defs = dg.Definitions(
        assets=[*project.defs.assets, catalogue], resources=project.defs.resources
    )
    assert dg.materialize([catalogue], instance=project.instance).success
    assert project.run(KEYS[0], KEYS[-1], only=True).success
    before = project.statuses()

    dg.materialize([catalogue], instance=project.instance)

    assert before == [FRESH] * 3
    assert project.statuses() == [STALE] * 3


def test_weights_that_cannot_be_identified_fail_the_observation(project):
    project.defs.resources["model"] = sd.ModelResource.from_spec(scaler(weights=1))
    with pytest.raises(dg.Failure, match=r"identify\(\) of backend 'tests.toys:Scaler' failed"):
        project.observe()


def test_the_version_that_a_materialisation_names_is_the_one_that_ran(project):
    assert project.run(key=KEYS[0], only=True).success

    (record,) = project.records()
    tags = record.asset_materialization.tags
    (seen,) = project.observations()
    assert tags["dagster/input_data_version/scaler"] == seen.tags["dagster/data_version"]
    assert json.loads(json.dumps(seen.metadata["backend_kwargs"].value)) == {
        "weights": str(project.weights)
    }
