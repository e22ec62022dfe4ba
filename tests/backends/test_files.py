"""Files of models, by path or URI."""

from __future__ import annotations

import pytest

from sheaf_dagster import SpecError
from sheaf_dagster.backends.common import digest
from sheaf_dagster.backends.common.files import file_identity, local_file, resolve_options


def test_a_file_that_is_missing_is_not_looked_for_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(digest, "_hub_commit", lambda *names: asked.append(names))

    assert file_identity("models/model.onnx", None) is None
    assert asked == []


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model.onnx").write_bytes(b"x")

    with local_file("~/model.onnx", {}) as path:
        assert path == str(tmp_path / "model.onnx")
    assert file_identity("~/model.onnx", None) == file_identity(path, None) is not None


def test_variables_are_filled_in_at_any_depth(monkeypatch):
    monkeypatch.setenv("THE_KEY", "abcdefgh")

    options = resolve_options({"key": {"env": "THE_KEY"}, "a": {"b": [{"env": "THE_KEY"}]}})

    assert options == {"key": "abcdefgh", "a": {"b": ["abcdefgh"]}}
    with pytest.raises(SpecError, match=r"storage_options.x: environment variable NOT_SET_HERE"):
        resolve_options({"x": {"env": "NOT_SET_HERE"}})
