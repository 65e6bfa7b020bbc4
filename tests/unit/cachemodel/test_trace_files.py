"""Each trace format from a tiny file, and what is said of a file that cannot be read."""

from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.trace import Op
from cachewarden.cachemodel.trace_files import ColumnSpec, TraceFileError, TraceFormat, load, read_trace
from cachewarden.errors import CachewardenError, SettingsError

TWITTER = (
    b"0,nz:u:eeW511,10,0,1,get,0\n"
    b"0,nz:u:eeW511,10,200,1,set,3600\n"
    b"5,nz:u:eeW511,10,200,2,get,0\n"
    b"9,other,with,commas,17,50,3,gets,0\n"
    b"9,nz:u:eeW511,10,0,1,delete,0\n"
)


def oracle(*rows: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("<IQIq", *row) for row in rows)


ORACLE = oracle((10, 7, 100, 3), (11, 8, 50, -1), (11, 7, 100, -1))


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)],
)
def test_twitter_rows_are_read_plain_and_packed(tmp_path: Path, suffix: str, pack):
    path = tmp_path / f"cluster052.sort{suffix}"
    path.write_bytes(pack(TWITTER))
    found = read_trace(path)
    assert found.trace_format is TraceFormat.TWITTER
    assert found.rows_read == 5
    # The write after the first read is its fill, so the reads stay, with what the write says of size and TTL.
    assert list(found.trace.op) == [Op.READ, Op.READ, Op.READ, Op.DELETE]
    assert list(found.trace.time_ms) == [0, 5000, 9000, 9000]
    assert list(found.trace.ttl_ms[:2]) == [3_600_000, 3_600_000]
    assert found.trace.size_bytes[0] == entry_bytes(10, 200, has_ttl=True)
    assert any("fill" in note for note in found.notes)


def test_a_key_with_commas_is_one_key_and_keeps_the_size_that_its_read_tells(tmp_path: Path):
    path = tmp_path / "cluster001"
    path.write_bytes(TWITTER)
    trace = load(path)
    assert trace.distinct_keys() == 2
    assert trace.size_bytes[2] == entry_bytes(17, 50, has_ttl=False)


def test_an_unknown_operation_is_told_with_its_line(tmp_path: Path):
    path = tmp_path / "cluster002"
    path.write_bytes(TWITTER + b"\n10,key,3,4,5,frobnicate,0\n")
    with pytest.raises(TraceFileError, match=r"cluster002:7: unknown operation `frobnicate`"):
        load(path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"10,key,3,4,get,0", ":6: 6 fields, expected 7"),
        (b"x,key,3,4,5,get,0", ":6: time `x` is no number"),
        (b"99999999999999999999,key,3,4,5,get,0", ":6: time `99999999999999999999` is no number"),
        (b"10,key,3,-4,5,get,0", ":6: value size `-4` is out of range"),
    ],
)
def test_a_broken_row_is_told_with_its_line(tmp_path: Path, line: bytes, told: str):
    path = tmp_path / "cluster003"
    path.write_bytes(TWITTER + line + b"\n")
    with pytest.raises(ValueError, match=told):
        load(path)


@pytest.mark.parametrize("name", ["w.oracleGeneral", "w.oracleGeneral.bin.zst", "nameless.bin"])
def test_oracle_general_is_told_by_name_or_by_content(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(zstandard.compress(ORACLE) if name.endswith("zst") else ORACLE)
    found = read_trace(path)
    assert found.trace_format is TraceFormat.ORACLE_GENERAL
    assert list(found.trace.time_ms) == [10_000, 11_000, 11_000]
    assert list(found.trace.size_bytes) == [100, 50, 100]
    assert found.trace.key[0] == found.trace.key[2] != found.trace.key[1]


def test_records_that_end_in_the_middle_are_told_with_their_byte(tmp_path: Path):
    path = tmp_path / "w.oracleGeneral"
    path.write_bytes(ORACLE[:-5])
    with pytest.raises(TraceFileError, match="19 of 24 bytes at byte 48"):
        load(path)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstandard.compress)]
)
def test_a_packed_file_that_is_cut_off_is_told(tmp_path: Path, suffix: str, pack):
    path = tmp_path / f"w.oracleGeneral.{suffix}"
    path.write_bytes(pack(np.random.default_rng(1).bytes(24_000))[:-100])
    with pytest.raises(TraceFileError, match="damaged or cut off"):
        load(path)


def test_several_zstd_frames_are_one_file(tmp_path: Path):
    path = tmp_path / "w.oracleGeneral.zst"
    path.write_bytes(zstandard.compress(ORACLE) + zstandard.compress(oracle((12, 9, 10, -1))))
    assert len(load(path)) == 4


def test_sizes_beyond_two_gibibytes_are_clipped_and_said_so(tmp_path: Path):
    path = tmp_path / "w.oracleGeneral"
    path.write_bytes(oracle((1, 7, 3 << 30, -1)))
    found = read_trace(path)
    assert found.trace.size_bytes[0] == 2**31 - 1
    assert found.notes == ("1 rows are larger than 2 GiB and count as 2 GiB",)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("time-col=1,obj-id-col=2,obj-size-col=3", "10,a,100\n11,b,50\n"),
        ("time-col=1, obj-id-col=2, obj-size-col=3, delimiter=,, has-header=true", "t,id,size\n10,a,100\n11,b,50\n"),
        ("time-col=1,obj-id-col=2,obj-size-col=3", "time,id,size\n10,a,100\n\n11,b,50\r\n"),
        ("obj-id-col=1,time-col=2,obj-size-col=4,delimiter=;", "a;10;?;100\nb;11;?;50\n"),
        ("time-col=1,obj-id-col=2,obj-size-col=3,delimiter= ,has-header=false", "10 a 100\n11 b 50\n"),
        ("time-col=1,obj-id-col=2,obj-size-col=3,delimiter=tab,time-unit=ms", "10000\ta\t100\n11000\tb\t50"),
        ("time-col=1,obj-id-col=2,obj-size-col=3,time-unit=ns", "10000000000,a,100\n11000000000,b,50\n"),
        ("time-col=1,obj-id-col=2,obj-size-col=3", "10.0,a,100\n11.0004,b,50\n"),
    ],
)
def test_columns_are_read_as_their_specification_says(tmp_path: Path, spec: str, text: str):
    path = tmp_path / "any.txt"
    path.write_text(text)
    trace = read_trace(path, columns=ColumnSpec.parse(spec)).trace
    assert list(trace.time_ms) == [10_000, 11_000]
    assert list(trace.size_bytes) == [100, 50]
    assert trace.distinct_keys() == 2


def test_columns_may_hold_operations_and_ttls(tmp_path: Path):
    path = tmp_path / "any.csv"
    path.write_text("1,7,set,60\n2,007,GET,0\n")
    text = "time-col=1,obj-id-col=2,op-col=3,ttl-col=4"
    trace = read_trace(path, columns=ColumnSpec.parse(text)).trace
    assert (list(trace.op), list(trace.ttl_ms), trace.distinct_keys()) == ([1, 0], [60_000, 0], 2)
    numbers = read_trace(path, columns=ColumnSpec.parse(text + ",obj-id-is-num=true")).trace
    assert numbers.distinct_keys() == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time-col=1", "`obj-id-col` is missing"),
        ("obj-id-col=0", "counted from 1"),
        ("obj-id-col=1,colour=red", "unknown column option `colour`"),
        ("obj-id-col=1,delimiter=ab", "one character"),
        ("obj-id-col=1,has-header=maybe", "`true` or `false`"),
        ("obj-id-col=1,time-unit=h", "needs one of s, ms, us, ns"),
        ("what", "is no column"),
    ],
)
def test_a_specification_of_columns_that_makes_no_sense_is_refused(text: str, told: str):
    with pytest.raises(SettingsError, match=told):
        ColumnSpec.parse(text)


def test_text_of_unknown_columns_says_what_to_do(tmp_path: Path):
    path = tmp_path / "any.csv"
    path.write_text("a;b;c\n1;2;3\n")
    with pytest.raises(TraceFileError, match="first line is `a;b;c`: say which columns it has"):
        load(path)
    with pytest.raises(TraceFileError, match="say which columns it has"):
        read_trace(path, trace_format=TraceFormat.COLUMNS)


def test_a_format_that_is_given_is_not_told_by_the_name(tmp_path: Path):
    path = tmp_path / "cache2k_shop.trace"
    path.write_bytes(ORACLE)
    assert read_trace(path, trace_format=TraceFormat.ORACLE_GENERAL).rows_read == 3
    assert read_trace(path, rate_per_s=1.0).trace_format is TraceFormat.IDS32


def test_reading_stops_at_the_limit_and_says_so(tmp_path: Path):
    path = tmp_path / "ids.trace"
    path.write_bytes(np.arange(1000, dtype=">i8").tobytes())
    found = read_trace(path, rate_per_s=1.0, limit=10)
    assert (found.rows_read, len(found.trace), found.limited) == (10, 10, True)
    assert read_trace(path, rate_per_s=1.0, limit=1000).limited is False


def test_a_sample_has_all_accesses_of_a_key_or_none_and_counts_the_others(tmp_path: Path):
    path = tmp_path / "ids.trace"
    ids = np.tile(np.arange(5000), 4)
    path.write_bytes(ids.astype(">i8").tobytes())
    found = read_trace(path, rate_per_s=1000.0, sampling_rate=0.2)
    assert set(np.unique(found.trace.key, return_counts=True)[1].tolist()) == {4}
    assert 800 < found.trace.distinct_keys() < 1200
    assert found.rows_read == 20_000
    assert found.reads_from(0) == pytest.approx(20_000)
    assert found.reads_from(10_000) == pytest.approx(10_000, abs=2)


def test_rows_out_of_order_are_sorted_and_said_so(tmp_path: Path):
    path = tmp_path / "any.csv"
    path.write_text("time_ms,key,size,ttl\n5,1,100,0\n3,2,50,9000\n")
    found = read_trace(path)
    assert list(found.trace.time_ms) == [3, 5]
    assert found.notes == ("times ran backwards, the rows were sorted by time",)


@pytest.mark.parametrize("content", [b"", b"time_ms,key,size,ttl\n"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "empty.csv"
    path.write_bytes(content)
    with pytest.raises(CachewardenError):
        load(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(TraceFileError, match="cannot be read: No such file"):
        load(tmp_path / "nothing.oracleGeneral")


def test_runs_of_blocks_are_unpacked_one_by_one(tmp_path: Path):
    path = tmp_path / "disk.lis"
    path.write_bytes(b"5 3 0 0\n6 1 0 1\n")
    trace = load(path, rate_per_s=1.0)
    assert (len(trace), trace.distinct_keys()) == (4, 3)
    assert trace.key[3] == trace.key[1]
    path.write_bytes(b"5 3 0 0\n6 99999999999 0 1\n")
    with pytest.raises(TraceFileError, match=r"disk.lis:2: number of blocks `99999999999` is out of range"):
        load(path, rate_per_s=1.0)
