"""The receipt beside a sink, and whether a file is still what it says."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import sheaf_dagster as sd
from sheaf_dagster import BatchResult, BatchRunner, BatchSpec, ModelSpec
from sheaf_dagster.batch.receipt import Receipt, code_digest, read_receipt, write_receipt
from sheaf_dagster.batch.verification import Verification, verify
from sheaf_dagster.batch.worker.loading import ModelContext
from sheaf_dagster.cli import main
from sheaf_dagster.errors import SourceNotFoundError, SpecError
from sheaf_dagster.storage import Location, source_digest, store_at
from tests.batch.jobs import leftovers, spec
from tests.toys import Doubler, doubler, scaler

ROWS = 70


class Place:
    """Files on a disk or in a bucket, which a test can change."""

    def __init__(self, job: BatchSpec) -> None:
        self.job = job

    def read(self, uri: str) -> bytes:
        store = store_at(Location.of(uri, self.job.storage_options))
        return store.read_range(0, store.require_state().size)

    def write(self, uri: str, data: bytes) -> None:
        store_at(Location.of(uri, self.job.storage_options)).write(data)

    def verify(self, receipt: Receipt | None = None, **fields) -> Verification:
        options = self.job.storage_options
        receipt = receipt or read_receipt(self.job.sink, options)
        return verify(receipt, **{"storage_options": options, "seed": 1, **fields})


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def place(request, tmp_path, write_rows) -> Place:
    """Seventy rows in batches of one, with a receipt asked for."""
    path = write_rows(list(range(ROWS)), note="a word of a row")
    fields = {"compute": "local", "batch_size": 1, "receipt": True}
    if request.param == "disk":
        return Place(spec(path, tmp_path, **fields))
    s3 = request.getfixturevalue("s3")
    s3.put("in.jsonl", Path(path).read_bytes())
    source, sink = s3.uri("in.jsonl"), s3.uri("out.jsonl")
    return Place(BatchSpec(source=source, sink=sink, storage_options=s3.options(), **fields))


def run(job: BatchSpec, model: ModelSpec | None = None, **fields) -> BatchResult:
    return BatchRunner(model or doubler(), on_progress=None, **fields).run(job)


def found(verification: Verification) -> dict[str, bool | None]:
    return {f.what: f.same for f in verification.findings}


def said(verification: Verification, what: str) -> str:
    return next(f.says for f in verification.findings if f.what == what)


def test_a_receipt_holds_digests_and_settings_and_no_row_and_no_secret(place):
    result = run(place.job)

    receipt = read_receipt(place.job.sink, place.job.storage_options)

    assert result.receipt == f"{result.sink}.receipt.json"
    assert receipt.source_digest == source_digest(place.job.source, place.job.storage_options)
    assert receipt.output_digest == source_digest(place.job.sink, place.job.storage_options)
    assert receipt.fingerprint == result.fingerprint
    assert receipt.layout == {"batch_size": 1}
    assert receipt.packages["pydantic"]
    assert receipt.code.startswith("sha256:")
    text = place.read(result.receipt).decode()
    assert "a word of a row" not in text
    assert not any(str(v) in text for v in place.job.storage_options.values() if v)


def test_a_file_that_is_what_it_was_is_verified(place):
    run(place.job)

    done = place.verify()

    assert done.ok
    assert found(done) == {
        "source": True, "output": True, "weights": None, "code": True, "packages": True,
        "answers": True,
    }  # fmt: skip
    assert (done.chunks, done.chunks_run, done.rows_run) == (ROWS, 20, 20)
    assert said(place.verify(seed=2), "answers") == said(done, "answers")


def test_a_changed_output_is_named_with_the_rows_that_differ(place):
    run(place.job)
    lines = place.read(place.job.sink).splitlines()
    lines[41] = lines[41].replace(b'"value":82', b'"value":83')
    place.write(place.job.sink, b"\n".join(lines) + b"\n")

    done = place.verify(sample=1000)

    assert not done.ok
    assert found(done)["output"] is False
    assert found(done)["answers"] is False
    assert "1 rows differ: rows 42" in said(done, "answers")


def test_a_changed_source_is_named_and_nothing_is_run(place):
    run(place.job)
    place.write(place.job.source, place.read(place.job.source) + b"\n")

    done = place.verify()

    assert not done.ok
    assert found(done)["source"] is False
    assert found(done)["answers"] is None
    assert said(done, "answers") == "not made again: source changed"


def test_changed_weights_are_named(tmp_path, write_rows):
    weights = tmp_path / "weights.bin"
    weights.write_text("2")
    model = scaler(weights=str(weights))
    place = Place(spec(write_rows([1, 2]), tmp_path, compute="local", receipt=True))
    run(place.job, model)
    assert found(place.verify())["weights"] is True

    weights.write_text("3")
    done = place.verify()

    assert not done.ok
    assert found(done)["weights"] is False
    assert found(done)["answers"] is None


def test_weights_that_are_known_once_loaded_are_compared_when_chunks_are_made_again(
    tmp_path, write_rows, monkeypatch
):
    monkeypatch.setattr(Doubler, "model_digest", lambda _: "revision 1")
    place = Place(spec(write_rows([1]), tmp_path, compute="local", receipt=True))
    run(place.job, doubler(load_log=str(tmp_path / "1")))
    assert found(place.verify())["weights"] is True

    monkeypatch.setattr(Doubler, "model_digest", lambda _: "revision 2")
    receipt = read_receipt(place.job.sink)
    receipt.model.backend_kwargs["load_log"] = str(tmp_path / "2")  # loads it anew
    done = place.verify(receipt)

    assert not done.ok
    assert said(done, "weights") == "changed: they are revision 2, and the receipt says revision 1"
    assert found(done)["answers"] is True


@pytest.mark.parametrize("fields", [{"reuse": "previous"}, {"reuse_from": "out/earlier.jsonl"}])
def test_kept_answers_are_made_again_and_not_copied(tmp_path, write_rows, monkeypatch, fields):
    monkeypatch.chdir(tmp_path)
    job = spec(write_rows([1, 2, 2]), tmp_path, compute="local", receipt=True)
    earlier = job.model_copy(update={"sink": "out/earlier.jsonl", "reuse": "previous"})
    run(earlier)
    run(job.model_copy(update={"reuse": "previous"}))
    job = BatchSpec(**{**job.model_dump(), **fields})
    assert run(job).reused_rows

    done = Place(job).verify()

    assert done.ok, done.findings
    assert done.rows_run == 3


def test_where_no_row_reached_the_model_nothing_is_said_to_have_run(tmp_path, write_rows):
    job = spec(write_rows(["one"]), tmp_path, compute="local", receipt=True, on_invalid="record")
    run(job)

    assert said(Place(job).verify(), "answers") == "the model answered no row; nothing to run"


def test_the_code_of_a_contract_and_of_base_classes_is_part_of_the_receipt(tmp_path):
    def module(name: str, text: str) -> type:
        (tmp_path / f"{name}.py").write_text(text)
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        found = importlib.util.module_from_spec(spec)
        sys.modules[name] = found
        spec.loader.exec_module(found)
        return found.A

    try:
        base = module("receipt_base", "class A: pass")
        child = module("receipt_child", "from receipt_base import A as B\nclass A(B): pass")
        before = code_digest(child, base)
        (tmp_path / "receipt_base.py").write_text("class A: x = 1")
        assert code_digest(child) != before
        assert code_digest(int) == ""
    finally:
        for name in ("receipt_base", "receipt_child"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("sample", [0, -1])
def test_a_sample_of_no_chunk_is_refused(tmp_path, write_rows, sample):
    place = Place(spec(write_rows([1]), tmp_path, compute="local", receipt=True))
    run(place.job)

    with pytest.raises(SpecError, match="sample must be 1 chunk or more"):
        place.verify(sample=sample)


def test_the_receipt_of_a_file_that_ends_in_json_is_found_by_either_name(tmp_path, write_rows):
    job = spec(write_rows([1]), tmp_path, compute="local", receipt=True)
    job = job.model_copy(update={"sink": str(tmp_path / "out.json")})
    beside = run(job).receipt
    elsewhere = tmp_path / "kept.json"
    elsewhere.write_bytes(Path(beside).read_bytes())

    receipts = [read_receipt(at) for at in (job.sink, beside, str(elsewhere))]

    assert [r.sink for r in receipts] == [job.sink] * 3


@pytest.mark.parametrize(
    ("change", "what", "shown"),
    [
        ({"packages": {}}, "packages", "absent, now"),
        ({"python": "3.9.0"}, "packages", "Python 3.9.0, now 3."),
        (
            {"code": "sha256:0"},
            "code",
            "a source file of backend tests.toys:Doubler or of its contract",
        ),
        ({"sheaf_dagster": "0.0.1"}, "code", "sheaf_dagster 0.0.1, now"),
    ],
)
def test_changed_code_and_packages_are_told_and_the_answers_decide(
    tmp_path, write_rows, change, what, shown
):
    place = Place(spec(write_rows([1]), tmp_path, compute="local", receipt=True))
    run(place.job)
    receipt = read_receipt(place.job.sink).model_copy(update=change)

    done = place.verify(receipt)

    assert done.ok
    assert found(done)[what] is False
    assert shown in said(done, what)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet"])
@pytest.mark.parametrize(
    "fields",
    [
        {"on_error": "record"},
        {"bucket_by": "group", "batch_size": 4},
        {"row_limit": 5},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_whatever_the_layout_the_same_bytes_are_made_again(tmp_path, write_rows, fields, suffix):
    job = BatchSpec(
        source=write_rows([*range(12), 13]),
        sink=str(tmp_path / f"out{suffix}"),
        **{"compute": "local", "batch_size": 3, "receipt": True, **fields},
    )
    run(job, doubler(fail_on=13) if "on_error" in fields else None, redact_rows=True)

    done = Place(job).verify()

    assert done.ok, done.findings


def test_a_file_has_no_receipt_unless_one_is_asked_for(tmp_path, write_rows):
    result = run(spec(write_rows([1]), tmp_path, compute="local"))

    assert result.receipt is None
    assert leftovers(tmp_path) == ["out.jsonl"]
    with pytest.raises(SourceNotFoundError):
        read_receipt(result.sink)


def test_a_receipt_that_cannot_be_written_costs_no_file(tmp_path, write_rows, caplog):
    job = spec(write_rows([1]), tmp_path, compute="local", receipt=True)
    (tmp_path / "out" / "out.jsonl.receipt.json" / "a folder").mkdir(parents=True)

    result = run(job)

    assert result.receipt is None
    assert "is committed, but has no receipt" in caplog.text
    assert Path(job.sink).exists()


def test_a_secret_in_clear_gets_into_no_receipt(tmp_path, write_rows):
    job = spec(write_rows([1]), tmp_path, compute="local")
    result = run(job)
    model = doubler().model_copy(update={"backend_kwargs": {"api_key": "a secret of mine"}})

    with pytest.raises(SpecError, match="api_key of backend_kwargs would appear in the receipt"):
        write_receipt(ModelContext.of(model), job, result)

    assert leftovers(tmp_path) == ["out.jsonl"]


def test_what_is_no_receipt_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"form": 2}')

    with pytest.raises(SpecError, match="is not a receipt of this version: form: "):
        read_receipt(str(tmp_path / "a.json"))


def test_the_command_line_says_what_differs_and_ends_with_1(tmp_path, write_rows):
    job = spec(write_rows([1, 2]), tmp_path, compute="local", receipt=True)
    receipt = run(job).receipt

    def verified(*more: str):
        return CliRunner().invoke(main, ["verify", receipt, *more], catch_exceptions=False)

    same, as_json = verified("--sample", "20"), verified("--json")
    Path(job.sink).write_text("{}\n{}\n")
    different = verified()

    assert (same.exit_code, as_json.exit_code, different.exit_code) == (0, 0, 1)
    assert "byte for byte the same" in same.output
    assert json.loads(as_json.output)["ok"] is True
    assert "NOT verified" in different.output
    assert "rows 1, 2" in different.output


def test_a_sample_of_a_parquet_file_is_all_of_it_and_the_help_says_so(tmp_path, write_rows):
    job = BatchSpec(
        source=write_rows([*range(6)]),
        sink=str(tmp_path / "out.parquet"),
        compute="local",
        batch_size=1,
        receipt=True,
    )
    run(job)

    done = Place(job).verify(sample=2)
    help_text = CliRunner().invoke(main, ["verify", "--help"]).output

    assert (done.ok, done.chunks, done.chunks_run) == (True, 6, 6)
    assert "has no effect on a Parquet file of answers" in " ".join(help_text.split())


def test_an_asset_links_the_receipt(tmp_path):
    from tests.definitions.project import Project

    project = Project(tmp_path, receipt=True)
    project.write("all", [1, 2])

    assert project.run(only=True).success

    md = project.records()[-1].asset_materialization.metadata
    assert md["receipt"].value == f"{tmp_path}/out/all.jsonl.receipt.json"
    assert sd.BatchOptions(receipt=True).receipt
