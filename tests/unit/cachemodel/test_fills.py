"""Folding the fills of a cache-aside client into its reads."""

from __future__ import annotations

import numpy as np

from cachewarden.cachemodel.fills import fold_fills
from cachewarden.cachemodel.trace import AccessTrace, Op

READ, WRITE = Op.READ, Op.WRITE


def _capture(rows: list[tuple[int, int, Op, int, int]]) -> AccessTrace:
    columns = list(zip(*rows, strict=True))
    return AccessTrace.of(columns[0], columns[1], columns[2], columns[3], columns[4])


def test_a_write_right_after_a_read_of_its_key_is_a_fill_and_marks_the_miss():
    folded = fold_fills(_capture([(0, 7, READ, 0, 0), (1, 7, WRITE, 500, 9_000), (50, 7, READ, 0, 0)]))
    assert folded.trace.op.tolist() == [READ, READ]
    assert folded.missed.tolist() == [True, False]
    assert folded.trace.size_bytes.tolist() == [500, 500]
    assert folded.trace.ttl_ms.tolist() == [9_000, 9_000]
    assert folded.hit_ratio == 0.5


def test_a_write_without_a_read_before_it_stays_an_update():
    folded = fold_fills(_capture([(0, 7, WRITE, 100, 0), (20_000, 8, READ, 0, 0)]))
    assert folded.trace.op.tolist() == [WRITE, READ]
    assert folded.trace.size_bytes.tolist() == [100, 100]


def test_a_write_long_after_the_read_is_no_fill():
    folded = fold_fills(_capture([(0, 7, READ, 0, 0), (60_000, 7, WRITE, 100, 0)]))
    assert folded.trace.op.tolist() == [READ, WRITE]
    assert not folded.missed.any()


def test_reads_of_other_keys_in_between_do_not_hide_a_fill():
    folded = fold_fills(_capture([(0, 1, READ, 0, 0), (1, 2, READ, 0, 0), (2, 1, WRITE, 10, 0), (3, 2, WRITE, 20, 0)]))
    assert folded.missed.tolist() == [True, True]
    assert folded.trace.size_bytes.tolist() == [10, 20]


def test_an_empty_capture_stays_empty():
    folded = fold_fills(AccessTrace.of([], []))
    assert len(folded.trace) == 0
    assert folded.hit_ratio is None
    assert isinstance(folded.missed, np.ndarray)
