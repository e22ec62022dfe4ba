"""Nothing read from a source is run, nothing of it is shown where rows are to be kept out."""

from __future__ import annotations

import ast
import json
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Literal

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import field_validator

import sheaf_dagster as sd
from sheaf_dagster import BatchRunner, BatchSpec
from sheaf_dagster.definitions.paths import partition_fields, resolve
from tests.conftest import ROOT, read_rows
from tests.definitions.project import Project
from tests.toys import Doubler, NumberResponse, doubler

PACKAGE = ROOT / "sheaf_dagster"

RUNS_CODE = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "code",
    "runpy",
}  # fmt: skip
OUR_OWN_BYTES = {"fresh_process.py", "link.py"}
"""``check_backend`` pickles a class and reads it back; a worker has processes of its own."""


# -- code ------------------------------------------------------------------------------------


def test_no_module_can_turn_bytes_into_code():
    for path in PACKAGE.rglob("*.py"):
        if path.name in OUR_OWN_BYTES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & RUNS_CODE, path
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.split(".")[0] not in RUNS_CODE, path
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__"), f"{path}: {called}"
                assert called not in ("torch.load", "yaml.load", "np.load"), f"{path}: {called}"


class Boom:
    def __reduce__(self):
        return (open, (os.environ["SHEAF_BOOM"], "w"))


def test_pickles_in_a_source_or_among_the_parts_are_bytes(write_rows, tmp_path, monkeypatch):
    monkeypatch.setenv("SHEAF_BOOM", str(tmp_path / "boom"))
    bomb = pickle.dumps(Boom())
    (tmp_path / "bomb.jsonl").write_bytes(bomb)
    source = write_rows([1, 2], note=bomb.decode("latin-1"))
    sink = tmp_path / "out" / "out.jsonl"
    spec = BatchSpec(source=source, sink=str(sink), batch_size=1, compute="local")
    aside = tmp_path / "out" / ".out.jsonl.sheaf"
    run = aside / f"run-{BatchRunner(doubler()).fingerprint(spec)[:24]}"
    run.mkdir(parents=True)
    for name in ("part-00000000-r1-e0-n0-b7.jsonl", "journal.pkl", "../x.pkl", "part-00000001.pkl"):
        (run / name).write_bytes(bomb)
    (aside / "lock").write_bytes(bomb)

    result = BatchRunner(doubler()).run(spec)
    with pytest.raises(sd.InputValidationError):
        BatchRunner(doubler()).run(spec.model_copy(update={"source": str(tmp_path / "bomb.jsonl")}))

    assert result.resumed_rows == 0
    assert [r["value"] for r in read_rows(sink)] == [2, 4]
    assert os.listdir(sink.parent) == ["out.jsonl"]
    assert not (tmp_path / "boom").exists()


def test_a_row_cannot_choose_what_is_imported(tmp_path):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    evil = "evil_module:Backend"
    row = {"model_name": evil, "value": 1, "backend": evil, "backend_kwargs": {"x": 1}}
    (tmp_path / "in.jsonl").write_text(
        json.dumps({**row, "__class__": evil, "py/object": evil, "$type": evil}) + "\n"
        + json.dumps({**row, "model_type": evil}) + "\n"
    )  # fmt: skip
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(sd.InputValidationError, match="line 2, field 'model_type'"):
            BatchRunner(doubler()).run(
                BatchSpec(
                    source=str(tmp_path / "in.jsonl"), sink=str(tmp_path / "o"), compute="local"
                )
            )
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules


# -- paths -----------------------------------------------------------------------------------

PIECES = [*"ab./\\~ \t\n\x00:%|*", "..", "%2e", "\u2025", "\uff0f"]
KEYS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(KEYS)
def test_a_partition_key_stays_in_its_folder_or_is_refused(key):
    try:
        fields = partition_fields(key)
    except sd.SpecError as e:
        assert "could lead out of the storage root" in str(e)
        return
    for template in ("{root}/in/{partition_key}.jsonl", "{root}/in/{partition_key}/x"):
        path = os.path.normpath(resolve(template, "/data", fields))
        below = path.removeprefix("/data/in/")
        assert path.startswith("/data/in/")
        assert below.count("/") == template.count("/") - 2


@pytest.mark.parametrize(
    "key", ["", ".", "..", "../x", "a/../../x", "/", "a\0b", "a\nb", "~", "\\"]
)
def test_keys_that_lead_elsewhere_are_refused(key):
    with pytest.raises(sd.SpecError, match="could lead out"):
        partition_fields(key)


# -- what is shown of rows -------------------------------------------------------------------

SECRET = "Hildegard-1098"


class PersonRequest(sd.BaseRequest):
    model_type: Literal["person"] = "person"
    value: float = 0.0
    name: str = ""

    @field_validator("name")
    @classmethod
    def _no_x(cls, value: str) -> str:
        if value.startswith("x"):
            raise ValueError(f"a name that begins with x: {value}")
        return value


sd.register_contract("person", PersonRequest, NumberResponse)


class Gossip(Doubler):
    """Quotes the row in whatever goes wrong."""

    model_type = "person"

    def __init__(self, how: str = "raise", size: int = 1) -> None:
        super().__init__()
        self.how, self.size = how, size

    def batch_predict(self, requests):
        names = " ".join(r.name for r in requests) * self.size
        if self.how == "raise":
            try:
                raise KeyError(names)
            except KeyError as e:
                raise ValueError(f"cannot serve {names}") from e
        if self.how == "memory" and len(requests) > 1:
            raise MemoryError(f"no room for {names}")
        if self.how == "type":
            return [names for _ in requests]
        return super().batch_predict(requests)


def person(how: str = "raise", **kwargs) -> sd.ModelSpec:
    return sd.ModelSpec(
        name="gossip", model_type="person", backend="tests.test_security:Gossip",
        backend_kwargs={"how": how, **kwargs},
    )  # fmt: skip


def write(folder: Path, *rows: str) -> str:
    path = folder / "in.jsonl"
    path.write_text("".join(r + "\n" for r in rows))
    return str(path)


def everything_said(error: BaseException) -> str:
    """What a log with tracebacks shows of it."""
    return "".join(traceback.format_exception(error))


INVALID = [
    f'{{"model_name": "m", "value": "{SECRET}"}}',
    f'{{"model_name": "m", "value": ["{SECRET}"]}}',
    f'{{"model_name": "m", "name": "x{SECRET}"}}',
    f'{{"model_name": "m", "model_type": "{SECRET}"}}',
    f'{{"model_name": "m", "request_id": "{SECRET}"}}',
    f'{{"model_name": "m", "value": {SECRET}}}',
    f'{{"model_name": "{SECRET}"',
    f'"{SECRET}"',
    SECRET,
]


@pytest.mark.parametrize("row", INVALID)
def test_invalid_rows_are_named_and_not_shown(tmp_path, row, caplog):
    job = BatchSpec(source=write(tmp_path, row), sink=str(tmp_path / "o"), compute="local")
    with pytest.raises(sd.InputValidationError) as caught:
        BatchRunner(person(), redact_rows=True).run(job)
    said = everything_said(caught.value) + caught.value.report.model_dump_json() + caplog.text
    assert SECRET not in said
    assert "line 1" in said


@pytest.mark.parametrize("how", ["raise", "memory", "type"])
@pytest.mark.parametrize("on_error", ["fail", "record"])
def test_what_a_backend_says_of_rows_is_not_shown(tmp_path, how, on_error, caplog):
    rows = [f'{{"model_name": "m", "name": "{SECRET}", "value": {i}}}' for i in range(4)]
    sink = tmp_path / "o"
    job = BatchSpec(
        source=write(tmp_path, *rows), sink=str(sink), compute="local", on_error=on_error
    )
    said = ""
    try:
        result = BatchRunner(person(how), redact_rows=True).run(job)
        said = result.model_dump_json() + sink.read_text()
    except sd.SheafError as e:
        said = everything_said(e)
    assert SECRET not in said + caplog.text
    if how == "raise":
        assert "ValueError" in said, "its type is told"


def test_an_assets_events_and_checks_show_no_row(tmp_path):
    for on_error in ("fail", "record"):
        project = Project(tmp_path / on_error, redact_rows=True, on_error=on_error)
        project.defs = dg.Definitions(
            assets=[project.asset],
            resources={
                "model": sd.ModelResource.from_spec(person()),
                "ray_cluster": sd.RayClusterResource(),
                "storage": sd.StorageResource(root=str(tmp_path / on_error)),
            },
        )
        folder = tmp_path / on_error / "in"
        folder.mkdir(parents=True)
        for row in (f'{{"model_name": "m", "name": "{SECRET}"}}', INVALID[2]):
            (folder / "all.jsonl").write_text(row + "\n")
            result = project.run()
            assert SECRET not in str(list(result.all_events))
            for event in result.all_events:
                assert SECRET not in (event.message or "")


def test_what_is_shown_is_bounded_where_rows_are_large(tmp_path):
    large = "y" * 3_000_000
    job = BatchSpec(
        source=write(tmp_path, f'{{"model_name": "m", "name": "{large}"}}'),
        sink=str(tmp_path / "o"),
        compute="local",
    )
    with pytest.raises(sd.PredictError) as caught:
        BatchRunner(person()).run(job)
    assert len(str(caught.value)) < 3000
    assert len(everything_said(caught.value)) < 60_000
    with pytest.raises(sd.InputValidationError) as refused:
        write(
            tmp_path, f'{{"model_name": "m", "{large}": 1, "name": "x{large}", "value": "{large}"}}'
        )
        BatchRunner(person()).run(job)
    assert len(refused.value.report.model_dump_json()) < 5000
    BatchRunner(person()).run(
        job.model_copy(
            update={
                "on_error": "record",
                "source": write(tmp_path, f'{{"model_name":"m","name":"{large}"}}'),
            }
        )
    )
    assert len((tmp_path / "o").read_text()) < 5000


# -- the cluster that we start ---------------------------------------------------------------

LISTENING = """
import json, sys
import psutil
from sheaf_dagster import BatchRunner, BatchSpec
from tests.toys import doubler
seen = {}
def look(progress):
    import ray
    if ray.is_initialized() and not seen:
        seen["dashboard"] = ray._private.worker.global_worker.node.address_info["webui_url"]
        seen["names"] = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
spec = BatchSpec(source=sys.argv[1], sink=sys.argv[2], batch_size=1)
BatchRunner(doubler(batch_seconds=0.05), on_progress=look).run(spec)
print(json.dumps(seen))
"""


@pytest.mark.ray
def test_the_ray_that_we_start_has_no_dashboard(write_rows, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", LISTENING, write_rows(list(range(60))), str(tmp_path / "o")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    seen = json.loads(done.stdout.splitlines()[-1])
    assert not seen["dashboard"]
    # Ray keeps a process of that name for its usage report; it serves no pages.
    for line in seen["names"]:
        if "dashboard/dashboard.py" in line:
            assert "--disable-frontend" in line
            assert "--host=127.0.0.1" in line
