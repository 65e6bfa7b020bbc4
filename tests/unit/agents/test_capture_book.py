"""Captures that follow upon each other make one history; others take each other's place."""

from __future__ import annotations

import pytest

from agents.capture_book import CaptureBook, monitor_cost_ms, pause_after_ms
from tests.unit.agents.looks import capture

HOUR_MS = 3_600_000


def piece(from_ms: int, *, keys: int = 50, rows: int = 1_000, span_ms: int = 20_000, rate: float = 1.0, aborted=None):
    step = 2_654_435_761
    return capture(
        [(from_ms + i * span_ms // rows, (i % keys) * step, 0, 0, 0) for i in range(rows)], rate=rate, aborted=aborted
    )


def test_a_capture_that_begins_where_the_last_one_ended_is_added():
    book = CaptureBook()
    book.take(piece(0), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(piece(20_050), from_ms=20_040, to_ms=40_100, history_ms=HOUR_MS)
    assert len(book) == 2_000
    assert book.duration_ms > 39_000
    assert book.reads is not None
    assert len(book.reads) < 1_000


def test_a_capture_after_a_gap_takes_the_place_of_what_was_held():
    book = CaptureBook()
    book.take(piece(0), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(piece(60_000), from_ms=60_000, to_ms=80_000, history_ms=HOUR_MS)
    assert len(book) == 1_000


def test_a_server_whose_clock_was_set_back_begins_a_new_history():
    book = CaptureBook()
    book.take(piece(50_000), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(piece(10_000), from_ms=20_040, to_ms=40_000, history_ms=HOUR_MS)
    assert len(book) == 1_000


def test_only_the_history_is_kept():
    book = CaptureBook()
    for n in range(10):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=60_000)
    assert 59_000 <= book.duration_ms <= 60_000


def test_beyond_its_bound_the_book_drops_keys_and_not_moments():
    book = CaptureBook(rows_max=1_500, keys_enough=20)
    for n in range(6):
        book.take(piece(n * 20_000, keys=400), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
        assert len(book) <= 1_500
    assert book.duration_ms > 110_000
    assert book.access is not None
    assert book.access.spatial_rate < 0.3


def test_where_keys_are_few_the_oldest_moments_go_and_all_keys_stay():
    book = CaptureBook(rows_max=1_500)
    for n in range(6):
        book.take(piece(n * 20_000, keys=400), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
        assert len(book) <= 1_500
    assert book.access is not None
    assert book.access.spatial_rate == 1.0
    assert book.access.trace.distinct_keys() == 400


def test_rows_of_one_key_alone_lose_the_oldest_moments():
    book = CaptureBook(rows_max=1_500)
    for n in range(3):
        book.take(piece(n * 20_000, keys=1), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
    assert 0 < len(book) <= 1_500


def test_the_whole_has_the_rate_of_its_coarsest_part():
    book = CaptureBook()
    book.take(piece(0, keys=400), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(piece(20_000, keys=400, rate=0.5), from_ms=20_000, to_ms=40_000, history_ms=HOUR_MS)
    assert book.access is not None
    assert book.access.spatial_rate == 0.5
    assert len(book) < 2_000


def test_a_piece_that_broke_off_early_does_not_push_out_a_longer_one_but_extends_it():
    book = CaptureBook()
    book.take(piece(0), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(piece(90_000, span_ms=1_000, aborted="slow"), from_ms=90_000, to_ms=91_000, history_ms=HOUR_MS)
    assert book.duration_ms > 19_000
    book.take(piece(20_000, span_ms=1_000, aborted="slow"), from_ms=20_000, to_ms=21_000, history_ms=HOUR_MS)
    assert book.duration_ms > 20_000


def test_a_capture_without_accesses_changes_nothing():
    book = CaptureBook()
    book.take(capture([]), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    assert book.access is None


@pytest.mark.parametrize(("commands_per_s", "pause_ms"), [(0, 0), (1_000, 0), (1_500, 0), (3_077, 20_000)])
def test_the_pause_follows_from_what_monitor_costs(commands_per_s: int, pause_ms: int):
    cost_ms = monitor_cost_ms(20 * commands_per_s, 0)
    assert pause_after_ms(20_000, cost_ms, 0.02) == pytest.approx(pause_ms, abs=20)


def test_large_values_cost_more_than_many_lines():
    # 100 writes of 10 kB a second: 1.2 ms each, an eighth of a core.
    cost_ms = monitor_cost_ms(2_000, 2_000 * 10_000)
    assert cost_ms / 20_000 == pytest.approx(0.12, abs=0.01)
    assert pause_after_ms(20_000, cost_ms, 0.02) > 90_000


def test_a_pause_in_which_nobody_asked_for_anything_does_not_end_a_history():
    book = CaptureBook()
    book.take(piece(0), from_ms=0, to_ms=20_000, history_ms=HOUR_MS)
    book.take(capture([]), from_ms=20_000, to_ms=40_000, history_ms=HOUR_MS)
    book.take(piece(40_000), from_ms=40_010, to_ms=60_000, history_ms=HOUR_MS)
    assert len(book) == 2_000


def test_a_long_history_is_handed_out_until_the_one_after_a_gap_is_worth_as_much():
    book = CaptureBook()
    for n in range(30):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
    handed_out = []
    for n in range(35, 55):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
        assert book.access is not None
        handed_out.append(book.access.trace.duration_ms)
    assert min(handed_out) > 199_000
    assert handed_out[-1] < 410_000


def test_a_long_history_is_not_handed_out_for_ever_where_only_short_captures_follow():
    book = CaptureBook()
    for n in range(30):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
    for n in range(40, 140, 10):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
    assert book.access is not None
    assert book.access.trace.duration_ms < 20_001


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        pause_after_ms(20_000, 1.0, 0.0)


def test_a_history_is_handed_out_as_it_grows():
    book = CaptureBook()
    for n in range(60):
        book.take(piece(n * 20_000), from_ms=n * 20_000, to_ms=(n + 1) * 20_000, history_ms=HOUR_MS)
        assert book.access is not None
        assert book.access.trace.duration_ms == book.duration_ms
