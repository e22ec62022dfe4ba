"""Protocols, their defaults, and secrets that stay out of texts."""

from __future__ import annotations

import pickle
import traceback

import pytest

from sheaf_dagster import (
    BatchRunner,
    BatchSpec,
    MissingDependencyError,
    SinkError,
    SourceError,
    SpecError,
)
from sheaf_dagster.storage import Location
from sheaf_dagster.storage.location import sink_errors
from sheaf_dagster.storage.options import scrub, with_defaults
from tests.object_store import KEY, SECRET
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
        assert not Location.of(uri, {"token": "anon", "account_name": "a"}).is_local


def test_users_may_change_retries_and_timeouts_one_by_one():
    options = with_defaults("s3", {"key": "k", "config_kwargs": {"read_timeout": 2}})
    assert options["config_kwargs"]["read_timeout"] == 2
    assert options["config_kwargs"]["retries"] == {"mode": "standard", "total_max_attempts": 5}
    assert options["use_listings_cache"] is False
    assert with_defaults("gs", {"token": "t"}) == {"token": "t"}


@pytest.mark.s3
def test_options_reach_botocore(s3):
    location = Location.of(s3.uri("x"), s3.options(read_timeout=7))
    location.state()
    config = location.fs.s3.meta.config
    assert (config.read_timeout, config.retries["total_max_attempts"]) == (7, 5)


@pytest.mark.s3
def test_one_file_system_serves_all_files_of_the_same_options(s3):
    options = s3.options(retries={"max_attempts": 2})
    first = Location.of(s3.uri("x"), options)
    first.state()
    assert Location.of(s3.uri("y"), options).fs is first.fs
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
