"""Drawing each series' paths from a stream of random numbers of its own.

The library draws a whole batch's tokens from torch's one stream, so that a row's paths would depend
on its batch mates. Here a processor draws first, row by row, with the library's own arithmetic, and
leaves the library no choice. A row's paths are those that the library draws of it alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

__all__ = ["drawing_by_row"]


@contextmanager
def drawing_by_row(model: Any, seeds: Sequence[int], paths: int) -> Iterator[None]:
    """Has a model draw each row with a seed of its own, for one call of its pipeline's ``predict``.

    Args:
        model: The ``ChronosModel`` of a ``ChronosPipeline``.
        seeds: One a row; the same as ``torch.manual_seed`` before the row alone.
        paths: Number of paths of each row.
    """
    from transformers import LogitsProcessorList

    inner = model.model
    draws = _row_draws(model.config, seeds, paths, inner.device)
    inner.generate = partial(inner.generate, logits_processor=LogitsProcessorList([draws]))
    try:
        yield
    finally:
        del inner.generate  # the class's own is found again


def _row_draws(config: Any, seeds: Sequence[int], paths: int, device: Any) -> Any:
    import torch
    from transformers import LogitsProcessor
    from transformers.generation import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    # What ``generate`` would do after this processor, in its order.
    warpers: list[Any] = []
    if config.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        warpers.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1.0:
        warpers.append(TopPLogitsWarper(config.top_p))
    streams = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]

    class RowDraws(LogitsProcessor):
        """Leaves of each path's scores the one of the token that is drawn."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            warped = scores
            for warp in warpers:
                warped = warp(input_ids, warped)
            likely = warped.softmax(dim=-1)
            drawn = torch.cat(
                [
                    torch.multinomial(likely[i * paths : (i + 1) * paths], 1, generator=stream)
                    for i, stream in enumerate(streams)
                ]
            )
            return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)

    return RowDraws()
