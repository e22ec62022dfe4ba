"""In which ways a backend of sheaf-serve answers a row otherwise than asked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, cast

from sheaf_dagster.contracts import BaseResponse, Deviation

__all__ = ["Asked", "deviations", "note"]

_BARK_TOKENS = 256
_FLUX_TOKENS = 512


@dataclass(frozen=True)
class Asked:
    """A row that was answered.

    Attributes:
        name: The backend's name in sheaf-serve.
        backend: It, loaded.
        request: The row, of its class.
        given: Fields that the row itself holds.
    """

    name: str
    backend: Any
    request: Any
    given: Collection[str]


def deviations(asked: Asked, answer: Any) -> list[Deviation]:
    """How an answer deviates from what its row asks for, as far as it is known of the backend.

    Args:
        asked: The row, and who answered it.
        answer: The response.
    """
    found = list(_of_any(asked, answer))
    of_this_one = _NOTES.get(asked.name)
    if of_this_one is not None:
        found += of_this_one(asked)
    return found


def note(answer: Any, *kinds: Deviation) -> Any:
    """Notes deviations in a response of sheaf-serve's, which has the field and not the method."""
    return BaseResponse.deviates(cast("BaseResponse", answer), *kinds)


def _of_any(asked: Asked, answer: Any) -> Iterator[Deviation]:
    request = asked.request
    if getattr(request, "output_mode", None) == "samples":
        samples = getattr(answer, "samples", None)
        if samples is not None and len(samples) != request.num_samples:
            yield "ignored_field"
    for side in ("height", "width"):  # a picture of another size than the one asked for
        wanted = getattr(request, side, None)
        if wanted is not None and getattr(answer, side, wanted) != wanted:
            yield "clipped"


def _chronos(asked: Asked) -> Iterator[Deviation]:
    yield from _one_variate(asked)
    yield from _read_at_most(asked, asked.backend._pipeline.model_context_length)


def _timesfm(asked: Asked) -> Iterator[Deviation]:
    yield from _one_variate(asked)
    yield from _read_at_most(asked, getattr(asked.backend._model, "context_len", None))


def _moirai(asked: Asked) -> Iterator[Deviation]:
    if asked.request.n_variates == 1 and asked.request.target_index > 0:
        yield "ignored_field"
    yield from _read_at_most(asked, asked.backend._context_length)


def _one_variate(asked: Asked) -> Iterator[Deviation]:
    """Other variates have no effect, nor has the choice of one where there is one."""
    if asked.request.n_variates > 1 or asked.request.target_index > 0:
        yield "ignored_field"


def _read_at_most(asked: Asked, steps: int | None) -> Iterator[Deviation]:
    if steps is not None and len(asked.request.history) > steps:
        yield "truncated"


def _whisper(asked: Asked) -> Iterator[Deviation]:
    if asked.request.vad_filter or "beam_size" in asked.given:
        yield "ignored_field"
    yield from _english_only(asked, asked.backend._model)


def _faster_whisper(asked: Asked) -> Iterator[Deviation]:
    yield from _english_only(asked, getattr(asked.backend._model, "model", None))


def _english_only(asked: Asked, model: Any) -> Iterator[Deviation]:
    elsewhere = asked.request.language not in (None, "en") or asked.request.task == "translate"
    if elsewhere and not getattr(model, "is_multilingual", True):
        yield "ignored_field"


def _bark(asked: Asked) -> Iterator[Deviation]:
    if asked.request.speed != 1.0:
        yield "ignored_field"
    tokenizer = asked.backend._processor.tokenizer
    if _tokens(tokenizer, asked.request.text, add_special_tokens=False) > _BARK_TOKENS:
        yield "truncated"


def _open_clip(asked: Asked) -> Iterator[Deviation]:
    texts, tokenizer = asked.request.texts, asked.backend._tokenizer
    if not texts:
        return
    longer = int(tokenizer([""]).shape[-1]) + 1
    # With room for one token more the last one is padding, unless a text needs it.
    padding = tokenizer([""], context_length=longer)[0, -1]
    if bool((tokenizer(texts, context_length=longer)[:, -1] != padding).any()):
        yield "truncated"


def _sequences(asked: Asked) -> Iterator[Deviation]:
    yield from _cut(asked.backend._tokenizer, asked.request.sequences)


def _smiles(asked: Asked) -> Iterator[Deviation]:
    yield from _cut(asked.backend._tokenizer, asked.request.smiles)


def _cut(tokenizer: Any, texts: list[str]) -> Iterator[Deviation]:
    if any(_tokens(tokenizer, text) > tokenizer.model_max_length for text in texts):
        yield "truncated"


def _tokens(tokenizer: Any, text: str, **options: Any) -> int:
    return len(tokenizer(text, truncation=False, verbose=False, **options)["input_ids"])


def _esm3(asked: Asked) -> Iterator[Deviation]:
    if "pooling" in asked.given and asked.request.pooling != asked.backend._pooling:
        yield "ignored_field"


def _esmfold2(asked: Asked) -> Iterator[Deviation]:
    if asked.request.msa is not None:
        yield "ignored_field"


def _flux(asked: Asked) -> Iterator[Deviation]:
    request, pipeline = asked.request, asked.backend._pipeline
    config = getattr(getattr(pipeline, "transformer", None), "config", None)
    unguided = request.guidance_scale and not getattr(config, "guidance_embeds", True)
    if request.negative_prompt or unguided:
        yield "ignored_field"
    if _tokens(pipeline.tokenizer_2, request.prompt) > _FLUX_TOKENS:
        yield "truncated"


def _sdxl(asked: Asked) -> Iterator[Deviation]:
    prompts = [p for p in (asked.request.prompt, asked.request.negative_prompt) if p]
    yield from _cut(asked.backend._pipeline.tokenizer, prompts)


def _prithvi(asked: Asked) -> Iterator[Deviation]:
    means = getattr(asked.backend._processor, "image_mean", None)
    unscaled = asked.request.normalize and (means is None or len(means) != asked.request.n_bands)
    if unscaled or asked.request.wavelengths is not None:
        yield "ignored_field"


def _vitpose(asked: Asked) -> Iterator[Deviation]:
    # For no boxes it takes the whole picture for one person; a threshold it never reads.
    if asked.request.bboxes == [] or "threshold" in asked.given:
        yield "ignored_field"


def _videomae(asked: Asked) -> Iterator[Deviation]:
    # It pools by the row, whose default wins over the constructor's choice.
    unread = "pooling" not in asked.given and asked.request.pooling != asked.backend._pooling
    if asked.request.task == "embedding" and unread:
        yield "ignored_field"


_NOTES: dict[str, Callable[[Asked], Iterator[Deviation]]] = {
    "bark": _bark,
    "chronos2": _chronos,
    "esm3": _esm3,
    "esmfold2": _esmfold2,
    "faster-whisper": _faster_whisper,
    "flux": _flux,
    "moirai": _moirai,
    "molformer": _smiles,
    "nucleotide_transformer": _sequences,
    "open-clip": _open_clip,
    "prithvi": _prithvi,
    "sdxl": _sdxl,
    "timesfm": _timesfm,
    "videomae": _videomae,
    "vitpose": _vitpose,
    "whisper": _whisper,
}
