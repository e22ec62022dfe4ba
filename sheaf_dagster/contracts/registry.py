"""Which request and response belong to a model type."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal, get_args, get_origin

from pydantic import BaseModel

from sheaf_dagster.contracts.base import ModelType
from sheaf_dagster.contracts.sheaf_serve import has_sheaf_serve, sheaf_serve_types, warn_once
from sheaf_dagster.errors import MissingDependencyError, SpecError, UnknownContractError

__all__ = ["Contract", "contract_for", "known_model_types", "register_contract"]


@dataclass(frozen=True)
class Contract:
    """The pair of types that a model type's rows and answers have."""

    model_type: str
    request: type[BaseModel]
    response: type[BaseModel]


_BUILT_IN = {
    str(ModelType.TIME_SERIES): ("time_series", "TimeSeries"),
    str(ModelType.TABULAR): ("tabular", "Tabular"),
    str(ModelType.EMBEDDING): ("embedding", "Embedding"),
    "features": ("features", "Features"),
    "tensors": ("tensors", "Tensors"),
    "text": ("text", "Text"),
    "openai_batch": ("openai_batch", "OpenAIBatch"),
}
"""Model type: the module and the name of its types. They take long to make, and most jobs use one."""

_CONTRACTS: dict[str, Contract] = {}


def register_contract(
    model_type: str | ModelType, request: type[BaseModel], response: type[BaseModel]
) -> Contract:
    """Makes a model type's contract known, so that jobs can validate its rows.

    Args:
        model_type: A name of your own, or a ``ModelType``.
        request: Pydantic model of a row; usually a subclass of ``BaseRequest``.
        response: Pydantic model of an answer; usually a subclass of ``BaseResponse``.

    Raises:
        SpecError: The types aren't pydantic models, the request's own ``model_type`` is another
            name, or the name has another contract already.
    """
    name = str(model_type)
    for role, cls in (("request", request), ("response", response)):
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            raise SpecError(
                f"register_contract({name!r}): {role} must be a pydantic model class, got {cls!r}"
            )
    contract = Contract(name, request, response)
    known = _own_contract(name)
    if known is not None and known != contract and not _is_reload(known, contract):
        raise SpecError(
            f"model type {name!r} already has a contract "
            f"({known.request.__module__}.{known.request.__qualname__}); choose another name"
        )
    own = _own_names(request)
    if own and name not in own:
        raise SpecError(
            f"register_contract({name!r}): each row of {request.__qualname__} would be refused, as "
            f"its 'model_type' is {' or '.join(map(repr, own))}; declare it as "
            f"model_type: Literal[{name!r}] = {name!r}, or register it under that name"
        )
    _CONTRACTS[name] = contract
    return contract


def _own_contract(name: str) -> Contract | None:
    """The contract that was registered for a model type, or is built in."""
    if name not in _CONTRACTS and name in _BUILT_IN:
        module, stem = _BUILT_IN[name]
        types = importlib.import_module(f"sheaf_dagster.contracts.{module}")
        return Contract(name, getattr(types, f"{stem}Request"), getattr(types, f"{stem}Response"))
    return _CONTRACTS.get(name)


def _own_names(request: type[BaseModel]) -> list[str]:
    """What a request's ``model_type`` may be, or is by default; empty where it leaves that open."""
    field = request.model_fields.get("model_type")
    if field is None:
        return []
    if get_origin(field.annotation) is Literal:
        return [*map(str, get_args(field.annotation))]
    return [field.default] if isinstance(field.default, str) else []


def _is_reload(old: Contract, new: Contract) -> bool:
    """A notebook cell or a reloaded module defines the same class again."""
    return (old.request.__module__, old.request.__qualname__) == (
        new.request.__module__,
        new.request.__qualname__,
    )


def contract_for(model_type: str | ModelType) -> Contract:
    """The contract of a model type: a registered one, or sheaf-serve's where that is installed.

    Raises:
        UnknownContractError: There is none; the message lists those that are known.
    """
    name = str(model_type)
    if (known := _own_contract(name)) is not None:
        return known
    theirs = sheaf_serve_types().get(name)
    if theirs is not None:
        return Contract(name, *theirs)
    hint = ""
    if name in {str(m) for m in ModelType} and not has_sheaf_serve():
        hint = " sheaf-serve's contract comes with pip install 'sheaf_dagster[sheaf]'."
    raise UnknownContractError(
        f"no contract is registered for model type {name!r}; "
        f"known: {', '.join(known_model_types())}. Register one with "
        f"sheaf_dagster.register_contract({name!r}, Request, Response).{hint}"
    )


def known_model_types() -> list[str]:
    """Model types that have a contract, sorted; sheaf-serve's among them if it is installed."""
    try:
        theirs = sheaf_serve_types()
    except MissingDependencyError as e:
        warn_once(f"some model types are left out: {e}")
        theirs = {}
    return sorted({*_BUILT_IN, *_CONTRACTS, *theirs})
