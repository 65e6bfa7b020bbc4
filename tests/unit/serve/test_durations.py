"""Our histogram says what prometheus_client's own would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from serve.durations import Durations

BOUNDS_S = (0.001, 0.01, 0.5, 2.0)


def rendered(lines: bytes) -> list[bytes]:
    """Without the moment at which the other one began to count."""
    return [line for line in lines.splitlines() if b"_created" not in line]


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from([*BOUNDS_S, 0.0, 0.0015, 1.0, 9.0])), max_size=20)
)
def test_the_text_is_that_of_the_library(observed):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = Durations("took_seconds", "how long", ("step",), BOUNDS_S)
    ours.register(mine)
    other = Histogram("took_seconds", "how long", ["step"], registry=theirs, buckets=BOUNDS_S)
    for step, took_s in observed:
        mine.observe((step,), took_s)
        other.labels(step).observe(took_s)
    assert rendered(generate_latest(ours)) == rendered(generate_latest(theirs))


def test_without_labels_it_is_there_before_anything_was_counted():
    registry = CollectorRegistry()
    registry.register(Durations("took_seconds", "how long", (), BOUNDS_S))
    assert b"took_seconds_count 0.0" in generate_latest(registry)
