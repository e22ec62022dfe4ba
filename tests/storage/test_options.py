"""Protocols, their defaults, and secrets that stay out of texts."""

from __future__ import annotations

import json
import pickle
import traceback
from functools import partial
from http.server import SimpleHTTPRequestHandler

import pytest

from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    MissingDependencyError,
    SinkError,
    SourceError,
    SourceNotFoundError,
    SpecError,
)
from sheaf_dagster.protocols import options_for
from sheaf_dagster.storage import Location, Sink, store_at
from sheaf_dagster.storage.compression import compress
from sheaf_dagster.storage.location import sink_errors
from sheaf_dagster.storage.options import scrub
from tests.loopback import Handler, Loopback
from tests.object_store import KEY, SECRET, checks_no_keys
from tests.toys import doubler


def test_an_unknown_protocol_is_named():
    with pytest.raises(SourceError, match="nosuch://x: Protocol not known: nosuch"):
        Location.of("nosuch://x")


@pytest.mark.parametrize(("uri", "package"), [("gs://b/x", "gcsfs"), ("az://c/x", "adlfs")])
def test_a_protocol_whose_package_is_missing_says_what_to_install(uri, package):
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(
            MissingDependencyError, match=f"{uri}.* needs a package: pip install {package}"
        ):
            Location.of(uri)
    else:
        location = Location.of(uri, {"token": "anon", "account_name": "a"})
        assert store_at(location).local_path is None


def test_users_may_change_retries_and_timeouts_one_by_one():
    options = options_for("s3", {"key": "k", "config_kwargs": {"read_timeout": 2}})
    assert options["config_kwargs"]["read_timeout"] == 2
    assert options["config_kwargs"]["retries"] == {"mode": "standard", "total_max_attempts": 5}
    assert options["use_listings_cache"] is False
    assert options_for("gs", {"token": "t"}) == {"token": "t"}


@pytest.mark.s3
def test_options_reach_botocore(s3):
    location = Location.of(s3.uri("x"), s3.options(read_timeout=7))
    store = store_at(location)
    store.state()
    config = store.filesystem.s3.meta.config
    assert (config.read_timeout, config.retries["total_max_attempts"]) == (7, 5)


@pytest.mark.s3
def test_one_file_system_serves_all_files_of_the_same_options(s3):
    options = s3.options(retries={"max_attempts": 2})
    first = Location.of(s3.uri("x"), options)
    store_at(first).state()
    second = Location.of(s3.uri("y"), options)
    assert store_at(second).filesystem is store_at(first).filesystem
    assert options == s3.options(retries={"max_attempts": 2})


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://user:pass-word@host/x.jsonl",
        "https://host/x.jsonl?X-Amz-Signature=pass-word",
        "https://host/x.jsonl?v=1&sig=pass-word",
    ],
)
def test_uris_that_carry_credentials_are_refused_without_showing_them(uri):
    with pytest.raises(SpecError, match="carries credentials") as e:
        Location.of(uri)
    assert "pass-word" not in str(e.value)
    assert "host/x.jsonl" in str(e.value)


@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET},
        {"client_kwargs": {"aws_session_token": SECRET}},
        {"token": {"private": {"id": SECRET}}},
        {"connection_string": SECRET},
        {"sas_token": [SECRET]},
    ],
)
def test_secrets_of_options_are_scrubbed(options):
    assert scrub(f"signed with {SECRET}!", options) == "signed with ***!"


def test_an_error_that_quotes_a_secret_is_shown_without_it():
    location = Location("s3://b/x", {"secret": SECRET})
    with pytest.raises(SinkError) as e, sink_errors(location):
        try:
            raise ValueError(f"inner {SECRET}")
        except ValueError as inner:
            raise RuntimeError("outer") from inner

    shown = "".join(traceback.format_exception(e.value))
    assert "s3://b/x can't be written: RuntimeError: outer" in shown
    assert SECRET not in shown


def test_options_the_file_system_refuses_are_an_error_of_the_spec():
    with pytest.raises(SpecError, match="check storage_options") as e:
        Location.of("s3://b/x", {"key": KEY, "username": SECRET})
    assert SECRET not in str(e.value)


def test_a_spec_shows_no_options_and_neither_does_the_error_that_refuses_it():
    options = {"key": KEY, "secret": SECRET}
    spec = BatchSpec(source="s3://b/x", sink="s3://b/y", storage_options=options)
    assert SECRET not in f"{spec!r} {spec}"
    with pytest.raises(ValueError, match="needs num_actors") as e:
        BatchSpec(source="s3://b/x", sink="s3://b/y", compute="actors", storage_options=options)
    assert SECRET not in str(e.value)
    with pytest.raises(ValueError, match="batch_size") as e:
        BatchSpec(source="s3://b/x", sink="s3://b/y", storage_options=options, batch_size=0)
    assert SECRET not in str(e.value)


@pytest.mark.s3
@checks_no_keys
def test_a_fingerprint_does_not_depend_on_credentials(s3):
    source = s3.put("in.jsonl", b'{"model_name": "m", "value": 1}\n')
    runner = BatchRunner(doubler())
    found = {
        runner.fingerprint(BatchSpec(source=source, sink=s3.uri("x"), storage_options=options))
        for options in (s3.options(), {**s3.options(), "secret": "another-secret"})
    }
    assert len(found) == 1


def test_a_location_shows_no_options_and_keeps_them_across_processes():
    location = Location.of("memory://b/x", {"secret": SECRET})
    again = pickle.loads(pickle.dumps(location))
    assert SECRET not in repr(location)
    assert again.options == location.options
    assert again.parent.child("y").options == location.options


S3_OPTIONS = {
    "key": KEY,
    "secret": SECRET,
    "endpoint_url": "http://127.0.0.1:9",
    "client_kwargs": {"region_name": "us-east-1"},
}


@pytest.mark.parametrize(
    ("protocol", "options", "given"),
    [
        ("https", S3_OPTIONS, {}),
        ("http", {"account_name": "a", "account_key": SECRET, "timeout": 3}, {"timeout": 3}),
        ("https", {"headers": {"a": "b"}, "ssl": False}, {"headers": {"a": "b"}, "ssl": False}),
        ("https", {"client_kwargs": {"trust_env": True}}, {"client_kwargs": {"trust_env": True}}),
        ("gs", {"headers": {"a": "b"}, "timeout": 3}, {"timeout": 3}),
        ("gs", {"token": "t"}, {"token": "t"}),
        ("memory", {}, {}),
        ("http", {**S3_OPTIONS, "https": {"headers": {"a": "b"}}}, {"headers": {"a": "b"}}),
        ("gs", {"s3": S3_OPTIONS, "gcs": {"token": "t"}, "http": {"ssl": 1}}, {"token": "t"}),
        ("az", {"abfs": {"account_name": "a"}, "s3": S3_OPTIONS}, {"account_name": "a"}),
    ],
)
def test_options_are_for_the_protocol_that_they_were_made_for(protocol, options, given):
    assert options_for(protocol, options) == given


@pytest.mark.parametrize("options", [S3_OPTIONS, {"s3": S3_OPTIONS}, {"s3a": S3_OPTIONS}])
def test_options_of_s3_reach_s3_under_its_name_and_under_none(options):
    found = options_for("s3", {**options, "https": {"headers": {"a": "b"}}})
    assert {name: found.get(name) for name in S3_OPTIONS} == S3_OPTIONS
    assert "headers" not in found


def test_options_of_two_protocols_are_asked_to_be_put_apart():
    with pytest.raises(SpecError, match="headers is for https://, and key, secret is not") as e:
        Location.of("https://host/x", {"headers": {}, "key": KEY, "secret": SECRET})
    assert SECRET not in str(e.value)


@pytest.fixture
def web(tmp_path):
    """A web server over a folder, that serves who sends its header; its address."""

    class Guarded(Handler, SimpleHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            if self.headers.get("X-Door") == "open":
                super().do_GET()
            else:
                self.send_error(403)

    server = Loopback(partial(Guarded, directory=str(tmp_path)))
    yield server.url
    server.stop()


@pytest.mark.s3
def test_a_job_reads_from_the_web_and_writes_to_s3_with_the_options_of_each(s3, web, write_rows):
    write_rows([1, 2, 3])
    options = {"s3": s3.options(), "http": {"headers": {"X-Door": "open"}}}
    spec = BatchSpec(
        source=f"{web}/in.jsonl", sink=s3.uri("out.jsonl"), compute="local", storage_options=options
    )

    result = BatchRunner(doubler(), on_progress=None).run(spec)

    assert result.rows == 3
    assert [json.loads(r)["value"] for r in s3.get("out.jsonl").splitlines()] == [2, 4, 6]


@pytest.mark.s3
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_version_of_an_object_is_read_as_it_is_named(s3, suffix):
    s3.client.put_bucket_versioning(Bucket=s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    codec = {"": None, ".gz": "gzip", ".zst": "zstd"}[suffix]
    row = '{{"model_type": "number", "model_name": "m", "value": {}}}\n'
    key, versions = f"in.jsonl{suffix}", []
    for values in ([1, 2], [3], [4, 5, 6]):
        body = compress("".join(map(row.format, values)).encode(), codec)
        put = s3.client.put_object(Bucket=s3.bucket, Key=key, Body=body)
        versions.append(put["VersionId"])
    spec = BatchSpec(
        source=f"{s3.uri(key)}?versionId={versions[1]}",
        sink=s3.uri(key),
        compute="local",
        storage_options=s3.options(),
    )

    result = BatchRunner(doubler(), on_progress=None).run(spec)

    assert result.rows == 1
    s3.client.delete_object(Bucket=s3.bucket, Key=key, VersionId=versions[1])
    with pytest.raises(SourceNotFoundError, match=f"versionId={versions[1]} does not exist"):
        store_at(Location.of(spec.source, s3.options())).require_state()


def test_a_version_of_an_object_is_no_sink():
    with pytest.raises(SpecError, match="a version of an object can't be written"):
        Sink(Location.of("s3://b/out.jsonl?versionId=1", S3_OPTIONS))
