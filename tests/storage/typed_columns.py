"""A column of each type whose values come back from JSON as they were."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa

DAY = dt.date(2026, 11, 27)
NANOSECONDS = 1_700_000_000_123_456_789
COLUMNS = {
    "integers of 64 bits": pa.array([2**63 - 1, None, -(2**63)], pa.int64()),
    "without a sign": pa.array([2**64 - 1, 0, None], pa.uint64()),
    "small integers": pa.array([-128, None, 127], pa.int8()),
    "halves": pa.array(np.array([0.1, 65504, -0.0], np.float16)),
    "float32": pa.array([0.1, None, 3.4e38], pa.float32()),
    "doubles": pa.array([0.1, None, 5e-324], pa.float64()),
    "booleans": pa.array([True, None, False]),
    "large texts": pa.array(['ü\u2028"\\', None, ""], pa.large_string()),
    "categories": pa.array(["a", None, "a"]).dictionary_encode(),
    "decimals": pa.array([Decimal("12345678901234567890123456789012345.10"), None], pa.decimal128(38, 2)),
    "long decimals": pa.array([Decimal(10) ** 60, None], pa.decimal256(70, 1)),
    "dates": pa.array([DAY, None]),
    "dates of 64 bits": pa.array([0, None, 86_400_000], pa.date64()),
    "times": pa.array([dt.time(1, 2, 3, 4), None], pa.time64("us")),
    "times with nanoseconds": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
    "timestamps": pa.array([NANOSECONDS, None], pa.timestamp("ns")),
    "timestamps with a zone": pa.array([NANOSECONDS, None], pa.timestamp("ns", "Europe/Berlin")),
    "durations": pa.array([dt.timedelta(days=-9, microseconds=7), None], pa.duration("us")),
    "durations with nanoseconds": pa.array([10**9 + 7, None, -1], pa.duration("ns")),
    "long durations": pa.array([10**17 + 1, None, -(2**63) + 1], pa.duration("ns")),
    "long durations with microseconds": pa.array([10**16 + 1, None], pa.duration("us")),
    "bytes": pa.array([b"\x00\xff", None, b""], pa.binary()),
    "bytes of one length": pa.array([b"\x00\xff", None], pa.binary(2)),
    "lists": pa.array([[1, None], None, []], pa.list_(pa.int32())),
    "lists of one length": pa.array([[0.5, 1.5], None], pa.list_(pa.float32(), 2)),
    "lists of halves": pa.array([[np.float16(0.1)], None, []], pa.list_(pa.float16())),
    "lists of times": pa.array([[NANOSECONDS, None], None, []], pa.list_(pa.timestamp("ns"))),
    "large lists of bytes": pa.array([[b"\xff"], None, []], pa.large_list(pa.binary())),
    "lists of one length, of dates": pa.array([[DAY, None], None], pa.list_(pa.date32(), 2)),
    "lists of lists": pa.array([[[DAY], None, []], None], pa.list_(pa.list_(pa.date32()))),
    "structs": pa.array([{"a": 1, "b": {"c": [DAY], "d": "x"}}, None, {"a": None, "b": None}]),
    "structs with decimals": pa.array(
        [{"price": Decimal("0.10"), "share": 0.1, "day": DAY}, None, {"price": None, "share": 2.0, "day": None}],
        pa.struct([("price", pa.decimal128(38, 20)), ("share", pa.float64()), ("day", pa.date32())]),
    ),
    "lists of structs": pa.array([[{"a": b"\xff"}, None], [], None]),
    "maps from integers": pa.array([[(-1, "a"), (2, None)], None], pa.map_(pa.int8(), pa.string())),
    "maps from days": pa.array([[(DAY, 1)], []], pa.map_(pa.date32(), pa.int64())),
    "maps from bytes": pa.array([[(b"\xff", True)], None], pa.map_(pa.binary(), pa.bool_())),
    "structs of durations": pa.array([{"wait": 10**17 + 1}, None], pa.struct([("wait", pa.duration("ns"))])),
    "ids": pa.array([UUID(int=2**127 + 1).bytes, None], pa.binary(16)).cast(pa.uuid()),
    "lists of ids": pa.ListArray.from_arrays([0, 1, 1], pa.array([bytes(16)], pa.binary(16)).cast(pa.uuid())),
    "texts of JSON": pa.array(['{"a": 1.50}', None], pa.string()).cast(pa.json_()),
    "maps": pa.array([[("k", DAY), ("l", None)], None, []], pa.map_(pa.string(), pa.date32())),
}  # fmt: skip
