"""Tables of samples: the headers, separators and units that programs write, recordings parted, bad cells named."""

from __future__ import annotations

import numpy as np
import pytest

from distree.bundle.inputs.tables import looks_like_table, read_tables
from distree.errors import RemoteProtocolError

EDGE_IMPULSE = "timestamp,accX,accY,accZ\n0,-9.81,0.03,1.21\n16,-9.83,0.04,1.27\n32,-9.12,0.03,1.23\n"
PHYPHOX = (
    '"Time (s)","Acceleration x (m/s^2)","Acceleration y (m/s^2)","Acceleration z (m/s^2)"\n'
    "0.000000000E0,1.5E-1,-2.0E0,9.8E0\n2.0E-2,1.6E-1,-2.1E0,9.7E0\n"
)
PHYPHOX_TABS = PHYPHOX.replace(",", "\t").replace('"', "").replace(".", ",")
SENSOR_LOGGER = (
    "time,seconds_elapsed,z,y,x\n1650000000000000000,0.01,3,2,1\n1650000000010000000,0.02,6,5,4\n"
)  # fmt: skip
PANDAS = ",ax,ay,label\n0,1,2,walk\n1,3,4,walk\n2,5,6,run\n3,7,8,run\n4,9,9,walk\n"


def the_table(text):
    (table,) = read_tables(text.encode())
    return table


def test_edge_impulses_export():
    table = the_table(EDGE_IMPULSE)
    assert table.columns == ("accX", "accY", "accZ")
    assert table.values.tolist() == [[-9.81, 0.03, 1.21], [-9.83, 0.04, 1.27], [-9.12, 0.03, 1.23]]
    assert (table.period, table.period_s, table.label, table.first_line) == (16.0, None, None, 2)


@pytest.mark.parametrize("text", [PHYPHOX, PHYPHOX_TABS, PHYPHOX.replace("\n", "\r\n"), "\ufeff" + PHYPHOX])
def test_a_phones_export_with_quotes_tabs_and_decimal_commas(text):
    table = the_table(text)
    assert table.columns[0] == "Acceleration x (m/s^2)"
    assert table.values.tolist() == [[0.15, -2.0, 9.8], [0.16, -2.1, 9.7]]
    assert table.period_s == pytest.approx(0.02)


def test_of_two_columns_of_time_the_one_with_a_unit_counts():
    table = the_table(SENSOR_LOGGER)
    assert table.columns == ("z", "y", "x")
    assert table.values.tolist() == [[3, 2, 1], [6, 5, 4]]
    assert table.period_s == pytest.approx(0.01)


def test_pandas_row_numbers_are_no_channel_and_labels_part_recordings():
    tables = read_tables(PANDAS.encode())
    assert [(table.label, table.values.tolist(), table.first_line) for table in tables] == [
        ("walk", [[1, 2], [3, 4]], 2), ("run", [[5, 6], [7, 8]], 4), ("walk", [[9, 9]], 6),
    ]  # fmt: skip
    assert {table.columns for table in tables} == {("ax", "ay")}


@pytest.mark.parametrize(
    ("name", "unit_s"),
    [
        ("time", None), ("t", None), ("Timestamp", None), ("time_ms", 1e-3), ("Time (ms)", 1e-3), ("timestamp [us]", 1e-6),
        ("ts (ns)", 1e-9), ("time (s)", 1.0), ("seconds_elapsed", 1.0), ("millis", 1e-3), ("time s", 1.0),
    ],
)  # fmt: skip
def test_names_of_columns_of_time_and_their_units(name, unit_s):
    table = the_table(f"{name},x\n0,1\n10,2\n20,3\n")
    assert table.columns == ("x",)
    assert table.period == 10
    assert table.period_s == (None if unit_s is None else pytest.approx(10 * unit_s))


@pytest.mark.parametrize("name", ["temp", "tx", "times_two", "torque", "x"])
def test_names_that_begin_alike_are_channels(name):
    assert the_table(f"{name},y\n0,1\n10,2\n").columns == (name, "y")


def test_dates_are_time_of_which_nothing_is_reckoned():
    table = the_table("datetime,x\n2024-01-01T10:00:00,1\n2024-01-01T10:00:01,2\n")
    assert (table.columns, table.period, table.values.tolist()) == (("x",), None, [[1], [2]])


def test_without_a_header_all_columns_are_channels():
    table = the_table("1;2,5\n-3;4\n\n")
    assert (table.columns, table.values.tolist(), table.first_line) == ((), [[1, 2.5], [-3, 4]], 1)
    assert the_table("1\n2\n").values.tolist() == [[1], [2]]


def test_time_that_goes_back_or_pauses_begins_another_recording():
    rows = [*range(0, 200, 10), *range(0, 100, 10), *range(5000, 5100, 10)]
    tables = read_tables(("t,x\n" + "".join(f"{t},{k}\n" for k, t in enumerate(rows))).encode())
    assert [len(table.values) for table in tables] == [20, 10, 10]
    assert [table.first_line for table in tables] == [2, 22, 32]
    # Jitter is none: two loggers in three write bursts.
    jitter = np.cumsum(np.tile([1, 1, 1, 40], 30))
    assert len(read_tables(("t,x\n" + "".join(f"{t},0\n" for t in jitter)).encode())) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "line 1: there are no rows"),
        ("\n\n", "line 1: there are no rows"),
        ("time,x\n", "line 1: there are no rows after the header"),
        ("time,label\n0,a\n", "line 1: there is no column of values among time, label"),
        ("x,label,class\n1,a,b\n", "line 1: it has 2 columns of labels"),
        ("t,x\n0,1\n1,two\n", "line 3: 'two' in column 'x' is not a finite number"),
        ("t,x\n0,1\n1,\n", "line 3: '' in column 'x' is not a finite number"),
        ("t,x\n0,1\n1,nan\n", "line 3: 'nan' in column 'x'"),
        ("t,x\n0,1\n1,1_000\n", "line 3: '1_000' in column 'x'"),
        ("1,2\n1,inf\n", "line 2: 'inf' in column '2'"),
        ("t,x\n0,1\n1,2,3\n", "line 3: it has 3 cells, but the first line has 2"),
        ("t,x\n0,1\n1\n", "line 3: it has 1 cells, but the first line has 2"),
    ],
)
def test_bad_rows_are_named_by_their_line(text, why):
    with pytest.raises(RemoteProtocolError, match=why) as caught:
        read_tables(text.encode())
    assert caught.value.reason == "table"
    assert "\n" not in str(caught.value)


def test_a_line_without_end_is_not_kept():
    with pytest.raises(RemoteProtocolError, match="line 2: it has 4194305 characters"):
        read_tables(b"a,b\n" + b"1," * (3 << 20))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (EDGE_IMPULSE.encode(), True), (PHYPHOX.encode(), True), (b"1,2\n3,4", True), (b"0.5", True), ("zeit;µ\n1;2,5\n".encode(), True),
        (b"", False), (b"hello", False), (b"\n\n", False), (bytes(784), False), (b"\x93NUMPY", False), (b"a,b\nc,d\n", False),
    ],
)  # fmt: skip
def test_tables_are_known_by_their_first_lines(content, told):
    assert looks_like_table(content) is told
