"""What every request and response carries, whatever the model type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from typing import Any, Literal, Self, TypeVar, get_args
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "DEVIATIONS",
    "BaseRequest",
    "BaseResponse",
    "Deviation",
    "ModelType",
    "deviations_of",
    "note_deviations",
    "passes",
    "row_identity",
]

F = TypeVar("F", bound=Callable[..., Any])

Deviation = Literal["fell_back", "truncated", "clipped", "ignored_field"]
"""How an answer may differ from what was asked: another method than the one asked for gave it
(``fell_back``); the model read only a part of the input (``truncated``); the answer was cut or held
to a limit (``clipped``); a field of the request had no effect (``ignored_field``)."""

DEVIATIONS: tuple[Deviation, ...] = get_args(Deviation)

_DEVIATIONS_KEY = "deviations"

PASSES = "__sheaf_passes__"
"""Where a validator carries what ``passes`` says of it."""


class ModelType(StrEnum):
    """The kinds of model that have a built-in name; the values are sheaf-serve 0.13's."""

    TIME_SERIES = "time_series"
    TABULAR = "tabular"
    MOLECULAR = "molecular"
    PROTEIN_LANGUAGE = "protein_language"
    STRUCTURE = "structure"
    GENOMIC = "genomic"
    MATERIALS = "materials"
    SMALL_MOLECULE = "small_molecule"
    GEOSPATIAL = "geospatial"
    WEATHER = "weather"
    DIFFUSION = "diffusion"
    VIDEO = "video"
    NEURAL_OPERATOR = "neural_operator"
    AUDIO = "audio"
    AUDIO_GENERATION = "audio_generation"
    TTS = "tts"
    EMBEDDING = "embedding"
    MULTIMODAL_EMBEDDING = "multimodal_embedding"
    SEGMENTATION = "segmentation"
    DEPTH = "depth"
    DETECTION = "detection"
    POSE = "pose"
    OPTICAL_FLOW = "optical_flow"
    MULTIMODAL_GENERATION = "multimodal_generation"
    POINT_CLOUD = "point_cloud"


class BaseRequest(BaseModel):
    """One row to run through a model.

    Attributes:
        request_id: Identity of the row. A row without one gets an id that is derived from its content
            (and, for equal rows, from the number of such rows before it). The id is the same in
            every run and at any place in the file.
        model_type: Selects the contract; each subclass fixes its own value.
        model_name: Name of the model that the row is meant for; copied into the response.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    request_id: UUID = Field(default_factory=uuid4)
    model_type: str
    model_name: str


class BaseResponse(BaseModel):
    """The answer to one request.

    Attributes:
        request_id: The request's own.
        model_type: The request's own.
        model_name: The request's own.
        metadata: Anything that a backend wants to say beside the answer.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    request_id: UUID
    model_type: str
    model_name: str
    metadata: dict[str, Any] = Field(default_factory=dict)

    def deviates(self, *kinds: Deviation) -> Self:
        """Marks this answer as one that deviates from what its row asked for. Returns the response.

        The mark is written to the row (``metadata.deviations``). The job's result, the
        materialisation and the checks count marked rows. A backend that can't do exactly what a
        row asks for either fails the row or marks the answer here.

        Args:
            kinds: How the answer deviates.
        """
        note_deviations(self.metadata, kinds)
        return self


def note_deviations(metadata: dict[str, Any], kinds: Iterable[Deviation]) -> None:
    """Marks a response by its metadata; see ``BaseResponse.deviates``."""
    noted = metadata.setdefault(_DEVIATIONS_KEY, [])
    noted += [kind for kind in kinds if kind not in noted]


def passes(**fields: Any) -> Callable[[F], F]:
    """Marks an "after" validator with rows that it is known to let pass.

    Checking a file may then pass it over for a row whose fields are of these types (None: null,
    or not given); it still runs wherever a request is made. It must not change such a row: a model
    that reads its rows in columns has them without it.

    Args:
        fields: Types of fields, by name.
    """

    def mark(validator: F) -> F:
        setattr(validator, PASSES, fields)
        return validator

    return mark


def deviations_of(response: Any) -> tuple[Deviation, ...]:
    """In which ways a response says that it deviates from what was asked; see ``deviates``.

    One of a form that has no place for metadata holds them in ``_deviations``, beside its line.

    Args:
        response: A response, or one as a dictionary.
    """
    get = response.get if isinstance(response, Mapping) else partial(getattr, response)
    metadata = get("metadata", None)
    if metadata and isinstance(metadata, dict):
        noted = metadata.get(_DEVIATIONS_KEY, ())
    else:
        noted = get("_deviations", ())
    # A dictionary may be of anybody's making.
    return tuple(k for k in DEVIATIONS if isinstance(noted, (list, tuple)) and k in noted)


def row_identity(row: Any) -> Any:
    """By what an answer is matched to its row: ``request_id``, or ``custom_id``, or None.

    Args:
        row: A request, a response, or either as a dictionary.
    """
    get = row.get if isinstance(row, dict) else partial(getattr, row)
    value = get("request_id", None)
    return get("custom_id", None) if value is None else value
