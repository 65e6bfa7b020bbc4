"""Higher limits of the small encodings: what they save and cost, and when nothing is recommended."""

from __future__ import annotations

import pytest

from cachewarden.cachemodel.encoding_cost import costs_of
from cachewarden.cachemodel.encoding_layout import REDIS_7_0_LAYOUT, VALKEY_9_1_LAYOUT, CollectionKind
from cachewarden.cachemodel.encoding_model import Unknown
from cachewarden.cachemodel.encoding_whatif import EXTRA_US_MAX, NOTES, LimitSaving, limit_savings
from cachewarden.value_sample import PASSED_OVER
from tests.unit.cachemodel.value_samples import big_hash, big_set, small_string, value_sample

KNOBS = {
    "hash-max-listpack-entries": "128",
    "hash-max-listpack-value": "64",
    "zset-max-listpack-entries": "128",
    "zset-max-listpack-value": "64",
    "set-max-intset-entries": "512",
}


def answers(sample, layout=REDIS_7_0_LAYOUT, knobs=KNOBS, keys=10_000) -> dict[str, list]:
    found: dict[str, list] = {}
    for name, answer in limit_savings(sample, layout, knobs, keys, 7):
        found.setdefault(name, []).append(answer)
    return found


def test_hashes_just_above_the_limit_would_be_listpacks_at_less_than_half_the_memory():
    (answer,) = answers(value_sample(*[big_hash(200)] * 40, *[small_string()] * 60))["hash (listpack)"]
    assert isinstance(answer, LimitSaving)
    assert answer.limits == {"hash-max-listpack-entries": 256, "hash-max-listpack-value": 64}
    assert answer.limits_now == {"hash-max-listpack-entries": 128, "hash-max-listpack-value": 64}
    assert (answer.collections, answer.mean_entries) == (40, 200)
    before = REDIS_7_0_LAYOUT.hash_table_bytes(200, 10, 20) + REDIS_7_0_LAYOUT.name_bytes(8)
    after = REDIS_7_0_LAYOUT.listpack_bytes(200 * 34) + REDIS_7_0_LAYOUT.name_bytes(8)
    assert answer.saved_share.value == pytest.approx(1 - after / before)
    assert answer.saved_share.low < answer.saved_share.value < answer.saved_share.high
    # Four of ten keys are such hashes.
    assert answer.saved_bytes.value == pytest.approx(4_000 * (before - after))
    assert answer.saved_bytes.low < 4_000 * (before - after) < answer.saved_bytes.high
    assert answer.recommended


def test_what_commands_cost_follows_the_number_of_entries():
    (answer,) = answers(value_sample(*[big_hash(200)] * 40))["hash (listpack)"]
    (hget,) = [cost for cost in answer.costs if cost.command == "HGET"]
    (line,) = [cost for cost in costs_of("redis-7.0", CollectionKind.HASH, "listpack") if cost.command == "HGET"]
    assert hget.extra_us.value == pytest.approx(line.extra_us(200))


def test_nothing_is_recommended_where_commands_would_become_too_slow():
    found = answers(value_sample(*[big_hash(900)] * 40))["hash (listpack)"]
    (answer,) = found
    assert answer.limits["hash-max-listpack-entries"] == 1024
    assert answer.costs[0].extra_us.value > EXTRA_US_MAX
    assert not answer.recommended
    assert "us, more than" in answer.reason


def test_a_limit_saves_nothing_on_a_collection_with_a_longer_member():
    long_members = [big_hash(100, longest=200)] * 40
    (answer,) = answers(value_sample(*long_members))["hash (listpack)"]
    assert answer.limits == {"hash-max-listpack-entries": 128, "hash-max-listpack-value": 256}
    too_long = [big_hash(100, longest=300)] * 40
    (unknown,) = answers(value_sample(*too_long))["hash (listpack)"]
    assert isinstance(unknown, Unknown)
    assert "would fit under any limit" in unknown.reason


def test_higher_limits_that_take_in_no_further_collection_have_no_answer_of_their_own():
    sample = value_sample(*[big_hash(200)] * 30, *[big_hash(400)] * 30)
    found = answers(sample)["hash (listpack)"]
    assert [(a.limits["hash-max-listpack-entries"], a.collections) for a in found] == [(256, 30), (512, 60)]


def test_collections_that_the_look_passed_over_count_like_those_that_it_measured():
    measured = value_sample(*[big_hash(200)] * 40)
    halved = value_sample(*[big_hash(200)] * 20, *[big_hash(200, read=PASSED_OVER)] * 20)
    (whole,), (part,) = (answers(sample)["hash (listpack)"] for sample in (measured, halved))
    assert part.saved_bytes.value == pytest.approx(whole.saved_bytes.value)


def test_a_few_collections_tell_nothing():
    (answer,) = answers(value_sample(*[big_hash(200)] * 19, *[small_string()] * 300))["hash (listpack)"]
    assert isinstance(answer, Unknown)
    assert "19 large collections" in answer.reason
    assert "20 are needed" in answer.reason


def test_a_saving_that_is_not_clear_of_nothing_is_not_recommended():
    (answer,) = answers(value_sample(*[big_hash(140, 1, 1)] * 20, *[big_hash(1000, 100, 300)] * 300))["hash (listpack)"]
    assert not answer.recommended
    assert "not clearly above" in answer.reason


def test_sets_of_numbers_become_intsets_and_faster():
    (answer,) = answers(value_sample(*[big_set(700)] * 40))["set (intset)"]
    assert answer.limits == {"set-max-intset-entries": 1024}
    assert answer.saved_share.value > 0.8
    assert answer.costs[0].extra_us.value < 0
    assert answer.recommended


def test_sets_of_numbers_are_no_candidates_for_listpacks_of_text():
    knobs = {**KNOBS, "set-max-listpack-entries": "128", "set-max-listpack-value": "64"}
    (answer,) = answers(value_sample(*[big_set(700)] * 40), VALKEY_9_1_LAYOUT, knobs)["set (listpack)"]
    assert isinstance(answer, Unknown)


def test_a_limit_that_the_server_does_not_know_and_a_layout_that_nobody_measured_are_said_so():
    found = answers(value_sample(*[big_hash(200)] * 40))
    assert "`set-max-listpack-entries` is not known here" in found["set (listpack)"][0].reason
    unmeasured = answers(value_sample(*[big_hash(200)] * 40), "nobody has measured it")
    assert {a.reason for name in ("hash (listpack)", "set (intset)") for a in unmeasured[name]} == {
        "nobody has measured it"
    }


def test_whoever_reads_the_answer_learns_that_a_raise_is_not_taken_back_for_free():
    told = " ".join(NOTES)
    assert "existing ones stay" in told
    assert "not neutral" in told
    assert "next write" in told


def test_the_same_sample_and_seed_give_the_same_answer():
    sample = value_sample(*[big_hash(150 + n) for n in range(60)])
    assert limit_savings(sample, REDIS_7_0_LAYOUT, KNOBS, 5_000, 3) == limit_savings(
        sample, REDIS_7_0_LAYOUT, KNOBS, 5_000, 3
    )
