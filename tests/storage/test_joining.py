"""Parts become one object on S3: copied inside the store, completed at once, or not there."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sheaf_dagster import SinkError
from sheaf_dagster.storage import Location, Sink, store_at
from sheaf_dagster.storage.stores import StoredPart
from sheaf_dagster.storage.stores.s3_join import MAX_COPY, MIN_PIECE, S3Join, plan_pieces
from tests.faults import Faults, FaultyProxy

SIZES = st.one_of(
    st.integers(1, 100),
    st.integers(MIN_PIECE - 2, MIN_PIECE + 2),
    st.integers(1, 4 * MIN_PIECE),
    st.integers(MAX_COPY - 1, 3 * MAX_COPY),
)


@settings(max_examples=200)
@given(st.lists(SIZES, min_size=1, max_size=30))
def test_pieces_cover_every_byte_once_in_order_within_the_rules_of_s3(sizes):
    pieces = plan_pieces(sizes)

    flat = [e for piece in pieces for e in piece]
    covered = [(e.part, at) for e in flat for at in (e.start, e.end)]
    assert covered == sorted(covered)
    assert all(e.start < e.end for e in flat)
    for part, size in enumerate(sizes):
        ranges = [e for e in flat if e.part == part]
        assert (ranges[0].start, ranges[-1].end) == (0, size)
        assert all(a.end == b.start for a, b in zip(ranges, ranges[1:]))
    assert all(sum(e.size for e in piece) >= MIN_PIECE for piece in pieces[:-1])
    assert all(e.size <= MAX_COPY for e in flat)
    assert len(pieces) <= 10_000


@settings(max_examples=100)
@given(st.lists(st.integers(1, 4 * MIN_PIECE), min_size=1, max_size=30))
def test_of_each_part_at_most_ten_mebibytes_pass_through_the_driver(sizes):
    fetched = [0] * len(sizes)
    for piece in plan_pieces(sizes):
        for e in piece if len(piece) > 1 or piece[0].size < MIN_PIECE else ():
            fetched[e.part] += e.size
    assert max(fetched) < 2 * MIN_PIECE


@pytest.mark.parametrize("count", [1, 9_000, 40_000])
def test_a_huge_number_of_parts_stays_below_the_limit_of_pieces(count):
    assert len(plan_pieces([6 * 2**20] * count)) <= 10_000


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, dict]]:
    """Every request that a commit makes."""
    made: list[tuple[str, dict]] = []
    call = S3Join._call

    def noted(self, method, **arguments):
        made.append((method, arguments))
        return call(self, method, **arguments)

    monkeypatch.setattr(S3Join, "_call", noted)
    return made


def allowed() -> None:
    """The target is still ours."""


def join(target: Location, parts: list[StoredPart]) -> None:
    store_at(target).join(target).commit(parts, b"", allowed)


def stored(s3, sizes: list[int]) -> tuple[list[StoredPart], bytes]:
    data = [os.urandom(size) for size in sizes]
    uris = [s3.put(f"aside/part %{i}+[x]", d) for i, d in enumerate(data)]
    stores = [store_at(Location.of(u, s3.options())) for u in uris]
    parts = [StoredPart(s, len(d), s.checksum(d)) for s, d in zip(stores, data)]
    return parts, b"".join(data)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("sizes", "copied", "sent"),
    [
        ([100, 200], 0, 0),
        ([MIN_PIECE, MIN_PIECE + 7, 50], 2, 1),
        ([50, 3 * MIN_PIECE, 60], 1, 2),
        ([MIN_PIECE + 1], 1, 0),
        ([MIN_PIECE - 1] * 7, 0, 4),
    ],
)
def test_large_parts_are_copied_inside_the_store(s3, requests, sizes, copied, sent):
    parts, data = stored(s3, sizes)
    target = Location.of(s3.uri("out.jsonl"), s3.options())

    join(target, parts)

    assert s3.get("out.jsonl") == data
    methods = [m for m, _ in requests]
    assert (methods.count("upload_part_copy"), methods.count("upload_part")) == (copied, sent)
    assert s3.uploads() == []


@pytest.mark.s3
def test_a_commit_that_fails_leaves_the_old_object_and_no_upload(s3):
    parts, _ = stored(s3, [MIN_PIECE, MIN_PIECE, 10])
    s3.put("out.jsonl", b"old\n")
    gone = Location.of(s3.uri("aside/gone"), s3.options())
    target = Location.of(s3.uri("out.jsonl"), s3.options())

    with pytest.raises(FileNotFoundError):
        join(target, [*parts[:2], StoredPart(store_at(gone), MIN_PIECE, "")])

    assert (s3.get("out.jsonl"), s3.uploads()) == (b"old\n", [])


@pytest.mark.s3
@pytest.mark.parametrize("sizes", [[100], [MIN_PIECE, 10]])
def test_a_commit_whose_answer_was_lost_counts_as_done(s3, monkeypatch, sizes):
    parts, data = stored(s3, sizes)
    target = Location.of(s3.uri("out.jsonl"), s3.options())
    call = S3Join._call

    def lose_the_answer(self, method, **arguments):
        answer = call(self, method, **arguments)
        if method in ("put_object", "complete_multipart_upload"):
            raise ConnectionResetError("the connection broke")
        return answer

    monkeypatch.setattr(S3Join, "_call", lose_the_answer)
    join(target, parts)

    assert (s3.get("out.jsonl"), s3.uploads()) == (data, [])


@pytest.mark.s3
def test_someone_elses_object_is_not_taken_for_ours(s3, monkeypatch):
    parts, _ = stored(s3, [100])
    target = Location.of(s3.uri("out.jsonl"), s3.options())
    call = S3Join._call

    def fail(self, method, **arguments):
        if method == "put_object":
            s3.put("out.jsonl", b"x" * 100)
            raise ConnectionResetError("the connection broke")
        return call(self, method, **arguments)

    monkeypatch.setattr(S3Join, "_call", fail)
    with pytest.raises(ConnectionResetError):
        join(target, parts)


@pytest.mark.s3
def test_uploads_of_killed_runs_are_aborted_and_those_of_others_are_not(s3):
    for key in ("dir/out.jsonl", "dir/out.jsonl2", "dir/.out.jsonl.sheaf/run-1/part"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    target = Location.of(s3.uri("dir/out.jsonl"), s3.options())
    parts, _ = stored(s3, [MIN_PIECE, 10])

    join(target, parts)
    store_at(Sink(target).aside).abort_uploads(allowed)

    assert s3.uploads() == ["dir/out.jsonl2"]


@pytest.mark.s3
def test_all_pages_of_unfinished_uploads_are_aborted(s3):
    aside = ".out.jsonl.sheaf"
    for key in (*(f"{aside}/part-{i}" for i in range(7)), "other"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)

    def in_pages_of_three(request: str, body: bytes) -> bytes:
        """As S3 lists them: in order, after the markers, so many at a time."""
        if not re.match(r"GET /[^?]*\?.*uploads", request):
            return body
        query = parse_qs(urlsplit(request.split(" ", 1)[1]).query)
        after = (query.get("key-marker", [""])[0], query.get("upload-id-marker", [""])[0])
        text = body.decode()
        uploads = re.findall(r"<Upload>.*?</Upload>", text, re.DOTALL)
        marks = [
            (re.search("<Key>(.*?)</Key>", u)[1], re.search("<UploadId>(.*?)</UploadId>", u)[1])
            for u in uploads
        ]
        left = sorted((m, u) for m, u in zip(marks, uploads) if m > after)
        page, rest = left[:3], left[3:]
        for upload in uploads:
            text = text.replace(upload, "")
        head = "".join(u for _, u in page)
        if rest:
            key, id = page[-1][0]
            head += (
                f"<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{id}</NextUploadIdMarker>"
            )
            text = re.sub("<IsTruncated>.*?</IsTruncated>", "<IsTruncated>true</IsTruncated>", text)
        return re.sub(r"(</\w+Result>\s*)$", lambda m: head + m[1], text).encode()

    proxy = FaultyProxy(s3.endpoint)
    proxy.faults = Faults(change=in_pages_of_three)
    try:
        place = Location.of(s3.uri(aside), s3.options(proxy.endpoint))
        store_at(place).abort_uploads(allowed)
    finally:
        proxy.stop()

    assert s3.uploads() == ["other"]
    assert proxy.faults.requests >= 3 + 7, "pages and abortions"


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_named_and_not_made(s3):
    sink = Sink(Location.of("s3://no-such-bucket/out.jsonl", s3.options()))
    with pytest.raises(
        SinkError, match="no-such-bucket/out.jsonl can't be written.*does not exist"
    ):
        sink.hold()
    assert "no-such-bucket" not in [b["Name"] for b in s3.client.list_buckets()["Buckets"]]
