"""How fields of the component are described, and the groups that YAML may write."""

# No postponed annotations here: Dagster reads those of components as they are.
from typing import Annotated, Any, Literal, get_origin

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, create_model

from sheaf_dagster.batch.spec import BatchOptions

__all__ = ["ArrivalsSpec", "RetryPolicySpec", "form_of", "option", "resource_field", "says"]

_Template = Annotated[str, Field(pattern=r"\{\{.*\}\}")]


def says(description: str, example: Any = None) -> Any:
    """The description of a field, and its value in the example, as the UI and ``dg`` show them."""
    examples = None if example is None else [example]
    return dg.Resolver.default(description=description, examples=examples)


def option(name: str, example: Any = None) -> Any:
    """A field of ``BatchOptions``, described as it is there."""
    return says(str(BatchOptions.model_fields[name].description), example)


def form_of(resource: type[dg.ConfigurableResource], leave_out: tuple[str, ...] = ()) -> Any:
    """What YAML may say of a resource: its own fields, with their descriptions.

    A number or choice may be a template, such as ``"{{ env.GPU_LIMIT }}"``, like any other
    attribute of a component.
    """
    fields: dict[str, Any] = {}
    for name, field in resource.model_fields.items():
        kind: Any = field.annotation
        if kind in (str, str | None) or get_origin(kind) is dict:
            fields[name] = kind, field
            continue
        for rule in field.metadata:
            kind = Annotated[kind, rule]
        fields[name] = kind | _Template, Field(field.default, description=field.description)
    for name in leave_out:
        del fields[name]
    form = create_model(
        resource.__name__.removesuffix("Resource"),
        __config__=ConfigDict(extra="forbid", protected_namespaces=()),
        __doc__=resource.__doc__,
        **fields,
    )
    return str | form


def resource_field(
    resource: type[dg.ConfigurableResource],
    description: str,
    form: Any,
    name: str,
    example: dict[str, Any],
) -> Any:
    """A resolver for the key of a resource, or the resource itself."""

    def resolve(context: dg.ResolutionContext, value: Any) -> Any:
        if not isinstance(value, BaseModel):
            return context.resolve_value(value)
        return resource(**context.resolve_value(value.model_dump(exclude_unset=True)))

    return dg.Resolver(
        resolve,
        model_field_type=form,
        model_field_name=name,
        description=description,
        examples=[example],
    )


class ArrivalsSpec(dg.Model, dg.Resolvable):
    """A sensor that runs the asset for each file that lands."""

    source: Annotated[
        str | None,
        says("Template of the location to watch. By default the asset's source."),
    ] = None
    files_per_run: Annotated[int, says("The most files that one run may cover.")] = 1
    settle_seconds: Annotated[
        float,
        says(
            "Seconds that a file in a local folder must stay unchanged before it counts as "
            "complete."
        ),
    ] = 10.0
    minimum_interval_seconds: Annotated[int, says("Seconds between two evaluations.")] = 30
    running: Annotated[bool, says("Start the sensor together with its code location.")] = False


class RetryPolicySpec(dg.Model, dg.Resolvable):
    """How often, and when, a step is retried after an error that a retry can fix."""

    max_retries: Annotated[int, says("The most retries.")] = 1
    delay: Annotated[float | None, says("Seconds before a retry.")] = None
    backoff: Annotated[
        Literal["linear", "exponential"] | None,
        says("How the delay grows from one retry to the next."),
    ] = None
    jitter: Annotated[
        Literal["full", "plus_minus"] | None, says("How the delay is varied at random.")
    ] = None

    def policy(self) -> dg.RetryPolicy:
        """The policy."""
        return dg.RetryPolicy(
            self.max_retries,
            self.delay,
            dg.Backoff[self.backoff.upper()] if self.backoff else None,
            dg.Jitter[self.jitter.upper()] if self.jitter else None,
        )
