"""From Dagster's ways to say credentials to the arguments of an fsspec file system."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from sheaf_dagster.errors import SpecError

__all__ = ["merged", "named_variables", "s3_options"]


def s3_options(resource: Any) -> dict[str, Any]:
    """What s3fs needs to know of an ``S3Resource`` (or another with the same fields).

    Raises:
        SpecError: It is no such resource.
    """
    if not hasattr(resource, "aws_access_key_id"):
        raise SpecError(
            f"storage: s3 is a {type(resource).__name__}; give it dagster_aws.s3.S3Resource"
        )
    options = {
        "key": resource.aws_access_key_id,
        "secret": resource.aws_secret_access_key,
        "token": resource.aws_session_token,
        "endpoint_url": resource.endpoint_url,
        "profile": resource.profile_name,
    }
    found: dict[str, Any] = {
        name: value for name, value in options.items() if isinstance(value, dg.EnvVar) or value
    }
    if getattr(resource, "use_unsigned_session", False):
        found["anon"] = True
    if not resource.use_ssl:
        found["use_ssl"] = False
    client = {"region_name": resource.region_name, "verify": resource.verify}
    found["client_kwargs"] = {name: value for name, value in client.items() if value is not None}
    found["config_kwargs"] = {
        "retries": {"mode": "standard", "total_max_attempts": resource.max_attempts}
    }
    return found


def named_variables(value: Any) -> Any:
    """The options with every ``EnvVar`` as ``{"env": NAME}``, which can travel."""
    if isinstance(value, dg.EnvVar):
        return {"env": value.env_var_name}
    if isinstance(value, Mapping):
        return {name: named_variables(below) for name, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [named_variables(below) for below in value]
    return value


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, the second over the first, key by key in nested dictionaries too."""
    joint = dict(below)
    for name, value in above.items():
        old = joint.get(name)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        joint[name] = merged(old, value) if both else value  # type: ignore[arg-type]
    return joint
