"""The model itself as an asset: what Dagster must see to know that it has changed."""

# No postponed annotations here: Dagster reads those of the step function as they are.
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from sheaf_dagster.batch.model_spec import ModelSpec
from sheaf_dagster.batch.runner import BatchRunner
from sheaf_dagster.definitions.rollouts import outdated_by, rollout_metadata
from sheaf_dagster.errors import SheafError
from sheaf_dagster.storage.options import with_secrets_hidden

__all__ = ["build_model_asset", "note_model_version", "version_tag"]

_VERSION = "dagster/data_version"


def build_model_asset(
    key: str | Sequence[str] | dg.AssetKey,
    *,
    model: str = "model",
    automation_condition: dg.AutomationCondition | None = None,
    group_name: str | None = None,
    description: str | None = None,
    tags: Mapping[str, str] | None = None,
    metadata: Mapping[str, object] | None = None,
) -> dg.AssetsDefinition:
    """Builds an observable asset that stands for a model. Its data version is the model's spec and weights.

    Pass it to ``build_batch_inference_asset(model_asset=…)``. When another version is observed, Dagster
    shows the answers of the earlier model as stale. The asset is observed from the UI, by
    ``automation_condition``, and by each run of the inference asset. Observing loads no model. Weights
    count if the backend can identify them (``ModelBackend.identify``). Each observation reports how many
    partitions and rows were made with another version: what a backfill would run.

    Example::

        forecaster = sd.build_model_asset(
            "forecaster", automation_condition=dg.AutomationCondition.on_cron("@hourly")
        )
        forecasts = sd.build_batch_inference_asset("forecasts", model_asset=forecaster, ...)

    Args:
        key: Key of the asset.
        model: Key of the ``ModelResource``.
        automation_condition: When to check whether the model has changed.
        group_name: Group of the asset.
        description: Shown on the asset's page.
        tags: Tags of the asset.
        metadata: Metadata of the definition.
    """
    spec = dg.AssetSpec(
        key,
        description=description or "The model: its version changes with its spec and its weights.",
        group_name=group_name,
        tags=tags,
        metadata=metadata,
        kinds={"model"},
        automation_condition=automation_condition,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)

        @dg.multi_observable_source_asset(
            specs=[spec],
            name=f"observe__{spec.key.to_python_identifier()}",
            required_resource_keys={model},
        )
        def observe_model(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
            try:
                model_spec: ModelSpec = getattr(context.resources, model).to_spec()
                runner = BatchRunner(model_spec)
                identity, version = runner.model_identity()
            except SheafError as e:
                raise dg.Failure(str(e), allow_retries=e.retryable) from e
            tag = version_tag(version)
            outdated = outdated_by(context.instance, spec.key, tag)
            for each in outdated:
                context.log.info(
                    f"{each.asset.to_user_string()}: {each.partitions:,} partitions were made with "
                    f"another version of the model; a backfill would run their {each.rows:,} rows"
                )
            yield dg.ObserveResult(
                asset_key=spec.key,
                data_version=dg.DataVersion(tag),
                metadata=_metadata(model_spec, identity) | rollout_metadata(outdated),
            )

    made: dg.AssetsDefinition = observe_model
    return made


def version_tag(model_version: str) -> str:
    """A model's version as Dagster's data version."""
    return model_version[:32]


def note_model_version(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    model: ModelSpec,
    identity: str | None,
    version: str,
) -> None:
    """Observes a model from a step that is about to run it, if it isn't what was seen last."""
    seen = context.instance.fetch_observations(dg.AssetRecordsFilter(asset_key=key), limit=1)
    for record in seen.records:
        observation = record.event_log_entry.asset_observation
        if observation is not None and observation.tags.get(_VERSION) == version_tag(version):
            return
    context.log_event(
        dg.AssetObservation(
            key,
            tags={_VERSION: version_tag(version)},
            metadata=_metadata(model, identity)
            | rollout_metadata(outdated_by(context.instance, key, version_tag(version))),
        )
    )


def _metadata(model: ModelSpec, identity: str | None) -> dict[str, Any]:
    return {
        "model": model.name,
        "backend": model.backend,
        "backend_kwargs": dg.MetadataValue.json(with_secrets_hidden(model.backend_kwargs)),
        "weights": identity or "not known without loading",
    }
