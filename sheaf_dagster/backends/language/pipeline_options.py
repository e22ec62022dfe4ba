"""Arguments of a classifying pipeline's calls, checked: the library passes over some that can't work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
)

from sheaf_dagster.errors import SpecError

__all__ = ["check_options", "most_tokens"]


def _with_a_place(template: str) -> str:
    if template.format("label") == template:
        raise ValueError("has no place {} for a label")
    return template


def _lowered(value: Any) -> Any:
    """A name as the library reads it: in capitals or not."""
    return value.lower() if isinstance(value, str) else value


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Tokenizing(_Options):
    truncation: bool | Literal["longest_first", "only_first"] = True
    max_length: PositiveInt | None = None
    padding: bool | Literal["longest", "max_length", "do_not_pad"] = False
    add_special_tokens: bool = True


class _Classes(_Tokenizing):
    top_k: PositiveInt | None = None
    function_to_apply: Annotated[
        Literal["sigmoid", "softmax", "none"] | None, BeforeValidator(_lowered)
    ] = None


class _ZeroShot(_Options):
    hypothesis_template: Annotated[str, AfterValidator(_with_a_place)] = "This example is {}."
    multi_label: bool = False


class _Entities(_Options):
    aggregation_strategy: Annotated[
        Literal["none", "simple", "first", "average", "max"], BeforeValidator(_lowered)
    ] = "none"
    ignore_labels: list[str] = Field(default_factory=list)
    stride: PositiveInt | None = None


class _Masks(_Options):
    top_k: PositiveInt | None = None
    targets: str | list[str] | None = None
    tokenizer_kwargs: _Tokenizing = Field(default_factory=_Tokenizing)


_OF_TASK: dict[str, type[_Options]] = {
    "text-classification": _Classes,
    "zero-shot-classification": _ZeroShot,
    "token-classification": _Entities,
    "fill-mask": _Masks,
}


def check_options(task: str, given: Mapping[str, Any]) -> None:
    """Raises where a task's pipeline has no such argument, or it can't have such a value.

    Raises:
        SpecError: The argument is named, with those that there are.
    """
    options = _OF_TASK.get(task)
    if options is None:
        if given:
            raise SpecError(f"pipeline_kwargs are for {', '.join(_OF_TASK)}, not for {task!r}")
        return
    try:
        options.model_validate(dict(given))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        path = ".".join(map(str, ("pipeline_kwargs", *first["loc"])))
        unknown = first["type"] == "extra_forbidden"
        why = "there is no such argument" if unknown else first["msg"].removeprefix("Value error, ")
        raise SpecError(
            f"{path}: {why} (got {first['input']!r}); those of {task!r} are "
            f"{', '.join(options.model_fields)}"
        ) from e


def most_tokens(given: Mapping[str, Any], limit: int) -> int:
    """How many tokens of a text are read: the model's own number, or fewer where that was asked."""
    inner = given.get("tokenizer_kwargs") or given
    return min(limit, inner.get("max_length") or limit)
