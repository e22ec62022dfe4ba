"""Assets that return the path of a file which is not JSONL after all."""

from __future__ import annotations

import pytest

from tests.definitions.rows import failure, returning, run

GOOD = '{"model_type": "number", "model_name": "m", "value": 1}\n'


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        (None, "row 2 is not JSON: unexpected character"),
        ("number", "1 of 3 rows are invalid"),
    ],
)
def test_a_line_that_is_no_json_is_named(model_type, message, tmp_path):
    ready = tmp_path / "ready.jsonl"
    ready.write_text(GOOD + "value: 2\n" + GOOD)

    result = run(tmp_path, returning(ready), model_type=model_type, raise_on_error=False)

    assert not result.success
    assert message in failure(result)
