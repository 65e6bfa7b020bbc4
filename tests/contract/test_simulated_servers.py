"""The servers of simulated worlds keep the promises of their ports: the suites of the real ones, run on them.

A model of a cache has no keys, so what is asked of keys is not asked of it.
"""

from __future__ import annotations

import pytest

from cachewarden.errors import StaleFencingToken
from simulation.load_model import LoadModel
from simulation.model_cache import ModelCache
from simulation.stores import CrashingJournal, CrashingLeases
from tests.contract.conftest import Cache, HandClock, Leases, service
from tests.contract.test_journal import (  # noqa: F401 - collected here with the fixtures below
    drafts,
    test_a_payload_that_json_cannot_hold_is_refused_and_nothing_is_written,
    test_an_empty_journal_begins_at_the_genesis_hash,
    test_reading_back_gives_the_newest_of_some_kinds_oldest_first,
    test_reading_back_without_a_limit_finds_what_is_old,
    test_reading_goes_on_behind_a_number_and_stops_at_a_limit,
    test_records_are_read_as_they_were_confirmed_and_form_a_chain,
)
from tests.contract.test_lease_stores import *  # noqa: F403
from tests.contract.test_target_caches import (  # noqa: F401
    lease,
    test_a_cache_that_is_gone_is_unavailable_and_not_in_doubt,
    test_a_paused_writer_that_comes_back_cannot_raise_the_fence_again,
    test_a_second_optimizer_takes_the_cache_and_the_first_can_write_no_more,
    test_a_write_outside_the_knob_table_is_refused_before_anything_is_sent,
    test_a_write_under_the_right_fence_is_confirmed_by_reading_it_back,
    test_an_evicted_fence_stops_the_write_until_it_is_raised_again,
    test_raising_the_same_fence_again_does_no_harm,
    test_unknown_knobs_are_missing_from_the_answer,
)


@pytest.fixture
def cache():
    clock = HandClock()
    model = ModelCache(service("redis://nowhere"), LoadModel(keys=1_000, skew=0.9), 100.0, clock=clock)
    return Cache(target=model, fake=model, clock=clock)


@pytest.fixture
def leases():
    clock = HandClock()
    return Leases(store=CrashingLeases(clock, lambda fact: None), clock=clock)


@pytest.fixture
def journal():
    return CrashingJournal("journal", HandClock(), lambda fact: None, CrashingLeases(HandClock(), lambda fact: None))


async def test_a_look_at_a_model_brings_counters_that_never_fall_and_settings(cache):
    before = await cache.target.counters()
    cache.clock.at_ms += 10_000
    after = await cache.target.counters()
    looked = [int(s.info["keyspace_hits"]) + int(s.info["keyspace_misses"]) for s in (before, after)]
    assert looked[1] - looked[0] == pytest.approx(1_000, abs=2)
    assert after.knobs["maxmemory-policy"] == "noeviction"
    assert after.incomplete == {}


async def test_a_model_that_restarts_is_another_process_without_fence_and_starts_empty(cache):
    before = await cache.target.counters()
    cache.fake.restart()
    after = await cache.target.counters()
    assert after.info["run_id"] != before.info["run_id"]
    assert (cache.fence(), after.info["keyspace_hits"]) == (None, "0")
    cache.clock.at_ms += 1_000
    assert cache.fake.hit_ratio_now < 0.5
    cache.clock.at_ms += 3_600_000
    assert cache.fake.hit_ratio_now > 0.9


async def test_a_command_that_comes_after_the_fence_was_written_again_does_nothing(cache):
    await cache.target.raise_fence(lease(5))
    seen = await cache.target.watch_fence()
    await cache.target.raise_fence(lease(5))
    with pytest.raises(StaleFencingToken):
        cache.target.require_watched(lease(5), seen)


async def test_a_crash_takes_the_newest_second_of_the_journal_and_no_more():
    clock = HandClock()
    journal = CrashingJournal("journal", clock, lambda fact: None, CrashingLeases(clock, lambda fact: None))
    await journal.append(drafts(2))
    clock.at_ms += 1_500
    await journal.append(drafts(3))
    clock.at_ms += 200
    journal.crash(60_000)
    assert (await journal.head())[0] == 2
    assert len(await journal.append(drafts(1))) == 1
