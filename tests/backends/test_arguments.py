"""Arguments of built-in backends are of the types that the classes declare, or refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pydantic import TypeAdapter

from sheaf_dagster import BatchRunner, BatchSpec, ModelSpec, SpecError
from sheaf_dagster.backends import resolve_backend
from sheaf_dagster.backends.arguments import check_arguments
from sheaf_dagster.backends.registry import _BUILTIN


@pytest.mark.parametrize("name", sorted(_BUILTIN))
def test_the_declared_types_of_each_backend_can_be_checked(name):
    backend = resolve_backend(name)

    for argument, hint in get_type_hints(backend.__init__).items():
        if argument != "return":
            TypeAdapter(hint)
    check_arguments(backend, "m", {})


@pytest.mark.parametrize(
    ("backend", "given", "says"),
    [
        ("sentence_transformers", {"truncate_dim": "8"}, r"truncate_dim is '8'.*integer"),
        ("sentence_transformers", {"prompt": 5}, r"prompt is 5.*string"),
        ("sentence_transformers", {"max_seq_length": True}, r"max_seq_length is True"),
        ("image_embedder", {"pooling": "max"}, r"pooling is 'max'.*'mean'"),
        ("chronos2", {"num_samples": 2.5}, r"num_samples is 2\.5"),
        ("tabicl", {"n_estimators": "two"}, r"n_estimators is 'two'"),
        ("statsforecast", {"fallback": "last"}, r"fallback is 'last'"),
        ("transformers_pipeline", {"temperature": "0.5"}, r"temperature is '0\.5'"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(backend, given, says):
    with pytest.raises(SpecError, match=rf"model 'm': backend_kwargs\.{says}"):
        check_arguments(resolve_backend(backend), "m", given)


@pytest.mark.parametrize(
    "given",
    [{"model_id": {"env": "MODEL"}}, {"model_id": Path("a")}, {"nope": 1}, {"truncate_dim": None}],
)
def test_what_only_the_constructor_can_judge_is_left_to_it(given):
    check_arguments(resolve_backend("sentence_transformers"), "m", given)


def test_backends_of_others_may_convert_what_they_are_given():
    class Own:
        def __init__(self, size: int = 1) -> None: ...

    own: Any = Own
    check_arguments(own, "m", {"size": "2"})


def test_no_row_is_read_where_an_argument_is_wrong(tmp_path):
    (tmp_path / "in.jsonl").write_text("no row\n")
    model = ModelSpec(
        name="m", model_type="embedding", backend="image_embedder", backend_kwargs={"pooling": 1}
    )
    spec = BatchSpec(
        source=str(tmp_path / "in.jsonl"), sink=str(tmp_path / "out.jsonl"), compute="local"
    )

    with pytest.raises(SpecError, match="pooling is 1"):
        BatchRunner(model).run(spec)
