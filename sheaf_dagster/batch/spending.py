"""What a job's answers cost, and what they may."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from sheaf_dagster.batch.kept import KEPT_TOKENS
from sheaf_dagster.batch.spec import BatchOptions
from sheaf_dagster.contracts.tokens import TOKEN_KINDS
from sheaf_dagster.errors import SpendingLimitError
from sheaf_dagster.storage import Part

__all__ = ["Spending", "cost_of", "tokens_in"]


def tokens_in(parts: Iterable[Part], *, kept: bool = False) -> dict[str, int]:
    """Tokens of parts by kind; empty where no answer said how many it took.

    Args:
        parts: Finished parts.
        kept: With those of answers that were kept of an earlier output.
    """
    letters = Counter[str]()
    for part in parts:
        letters.update(part.counts)
    counts = {k: letters[k[0]] + (letters[KEPT_TOKENS[k]] if kept else 0) for k in TOKEN_KINDS}
    return counts if any(counts.values()) else {}


def cost_of(tokens: Mapping[str, int], prices: Mapping[str, float] | None) -> float | None:
    """What tokens cost; None where there are no prices, or nobody said how many tokens there were.

    Args:
        tokens: By kind; ``hit`` are those of ``prompt`` that the engine had in its cache.
        prices: Of a million of them; see ``BatchOptions.price_per_million``.
    """
    if not tokens or prices is None:
        return None
    prompt = prices.get("prompt", 0.0)
    cached = tokens["hit"]
    millionths = (
        (tokens["prompt"] - cached) * prompt
        + cached * prices.get("cached", prompt)
        + tokens["output"] * prices.get("completion", 0.0)
    )
    return millionths / 1e6


class Spending:
    """Adds up what a job spends, over all its files; the feeder and the driver's loop both tell it.

    Parts that a killed run of the same job has left count, too: a limit is that of the job, not of
    one attempt at it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = 0
        self._cost = 0.0

    def add(self, options: BatchOptions, parts: Iterable[Part]) -> None:
        """Counts the tokens of finished parts."""
        tokens = tokens_in(parts)
        cost = cost_of(tokens, options.price_per_million)
        with self._lock:
            self._tokens += tokens["prompt"] + tokens["output"] if tokens else 0
            self._cost += cost or 0.0

    def over(self, options: BatchOptions) -> SpendingLimitError | None:
        """The error of a file that may not go on, once a limit of its own is reached."""
        limit, most = options.max_tokens_total, options.max_cost
        if limit is not None and self._tokens >= limit:
            reached = f"max_tokens_total={limit:,} is reached: this job's answers took "
            reached += f"{self._tokens:,} tokens"
        elif most is not None and self._cost >= most:
            reached = f"max_cost={most:g} is reached: this job's answers cost {self._cost:.6g}"
        else:
            return None
        return SpendingLimitError(f"{reached}. Raise the limit to continue: answered rows are kept")
