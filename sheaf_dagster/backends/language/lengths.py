"""How many tokens a text can have at most, known without a tokenizer."""

from __future__ import annotations

__all__ = ["tokens_at_most"]

_MARKS = 8
"""Tokens that mark both ends, and spaces that a tokenizer puts before a text."""

_BYTES_OF_A_CHARACTER = 33
"""Of the longest one once it is normalised: NFKC turns U+FDFA into 18 letters and spaces."""


def tokens_at_most(text: str) -> int:
    """A bound for any tokenizer that has at most one token for each byte of the normalised text.

    Normalisation leaves ASCII as long as it is; other characters may become several.
    """
    return len(text) * (1 if text.isascii() else _BYTES_OF_A_CHARACTER) + _MARKS
