"""Contracts with fields that JSON Schema has no word for."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import BeforeValidator, PlainSerializer

import sheaf_dagster as sd
from sheaf_dagster.backends import ModelBackend
from sheaf_dagster.cli import main
from sheaf_dagster.contracts import schema_of
from tests.batch.jobs import spec
from tests.conftest import ROOT, read_rows

Array = Annotated[np.ndarray, BeforeValidator(np.asarray), PlainSerializer(np.ndarray.tolist)]


class ArrayRequest(sd.BaseRequest):
    """A row that is an array at once."""

    model_type: str = "array"
    values: Array


class ArrayResponse(sd.BaseResponse):
    """Its sum."""

    model_type: str = "array"
    total: float


sd.register_contract("array", ArrayRequest, ArrayResponse)


class Adder(ModelBackend):
    """Adds arrays up."""

    model_type = "array"

    def load(self) -> None:
        """Nothing to load."""

    def predict(self, request: Any) -> ArrayResponse:
        """The sum."""
        return ArrayResponse(
            request_id=request.request_id,
            model_name=request.model_name,
            total=float(request.values.sum()),
        )


@pytest.mark.parametrize("redact", [False, True])
def test_a_contract_may_have_fields_that_only_their_validator_knows(tmp_path, redact):
    source = tmp_path / "in.jsonl"
    source.write_text('{"model_name": "m", "values": [1, 2]}\n')
    model = sd.ModelSpec(name="adder", model_type="array", backend=f"{__name__}:Adder")

    runner = sd.BatchRunner(model, redact_rows=redact)

    result = runner.run(spec(str(source), tmp_path, compute="local"))

    assert [row["total"] for row in read_rows(result.sink)] == [3.0]
    assert result.fingerprint == runner.fingerprint(spec(str(source), tmp_path))


def test_what_json_schema_knows_of_such_a_contract_is_described():
    said = CliRunner().invoke(main, ["contracts", "array"])

    assert said.exit_code == 0, said.output
    assert '"not described: numpy.ndarray"' in said.output
    assert '"model_name"' in said.output


def test_the_schema_is_the_same_in_each_process():
    code = f"from {__name__} import *; print(schema_of(ArrayRequest))"

    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )

    assert said.stdout.strip() == str(schema_of(ArrayRequest))
