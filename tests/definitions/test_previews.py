"""A few rows and their answers as a table: brief, bounded, and without markup of theirs."""

from __future__ import annotations

import re

import pytest

from sheaf_dagster.definitions.preview import MAX_PREVIEW_CHARS, preview_inline, preview_table
from sheaf_dagster.plots import MAX_INLINE_CHARS
from tests.drawn import embedding


def test_the_preview_says_briefly_what_stands_in_long_rows():
    pairs = [
        ({"model_type": "embedding", "texts": [f"shoe {i}"], "images_b64": None}, answer)
        for i, (_, answer) in enumerate([embedding(["x"], 384)] * 30)
    ]
    pairs[0][1]["embeddings"][0][:4] = [0.123456, -1, 0.5, 2.0]

    inline, table = preview_inline(pairs), preview_table(pairs)

    assert len(inline) <= MAX_INLINE_CHARS
    assert len(table) <= MAX_PREVIEW_CHARS
    first = inline.splitlines()[2]
    assert first.startswith(r"| **texts** \[shoe 0\] | **embeddings** \[\[0.1235, -1, … 384\]\]")
    assert len(table.splitlines()) == 12
    assert "model" not in table


@pytest.mark.parametrize("size", [10, 10**5])
def test_rows_of_any_size_are_previewed_within_bounds_and_cannot_become_markup(size):
    hostile = "a | b\n| c | d |\n<img src=x onerror=alert(1)> [x](javascript:1) `code` **bold** "
    row = {f"field_{i}": hostile * (size // len(hostile) + 1) for i in range(9)}

    inline, table = preview_inline([(row, row)] * 20), preview_table([(row, row)] * 20)

    for text, bound in ((inline, MAX_INLINE_CHARS), (table, MAX_PREVIEW_CHARS)):
        assert 0 < len(text) <= bound
        assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in text.splitlines())
        assert not re.search(r"(?<!\\)[<`\[]", text)


def test_no_word_of_the_short_preview_is_too_wide_for_its_column():
    uri = "s3://a-bucket-of-pictures/2026/01/05/pictures/0001.png"
    row = {"image_uris": [uri], "a_field_with_a_name_of_many_letters": "x" * 500, "note": "a b"}

    shown, whole = preview_inline([(row, {"text": uri})]), preview_table([(row, {"text": uri})])

    words_shown = shown.replace("\\", "").replace("*", "").split()
    assert max(map(len, words_shown)) <= 22, "the words and the marks around them"
    assert "tures/0001.png" in shown
    assert f"**text** {uri}" in whole.replace("\\", "")


def test_fields_that_never_change_are_left_to_the_long_preview():
    pairs = [({"value": i, "horizon": 7}, {"mean": [i]}) for i in range(3)]
    assert "horizon" not in preview_inline(pairs)
    assert "horizon" in preview_table(pairs)
    assert "horizon" in preview_inline([({"horizon": 7}, {"mean": [1]})] * 3)
