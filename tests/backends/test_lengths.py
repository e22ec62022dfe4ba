"""The bound on tokens, against a tokenizer that makes as many as any can: one a byte."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from sheaf_dagster.backends.language.lengths import tokens_at_most

pytestmark = pytest.mark.model

LETTERS = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
CHANGED = [c for c in LETTERS if unicodedata.normalize("NFKD", c) != c or c.lower() != c]


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"])
def test_no_character_becomes_more_tokens(form):
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bytewise = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    bytewise.normalizer = getattr(normalizers, form)()
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel()

    found = bytewise.encode_batch([*CHANGED, "plain", "".join(CHANGED)])

    assert len(found) > 5_000
    for text, tokens in zip([*CHANGED, "plain", "".join(CHANGED)], found, strict=True):
        assert len(tokens.ids) <= tokens_at_most(text)
