"""Keep, take back, or watch longer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.effect import Drift
from agents.guardrails import Promise, Ruling, alarm, judge, limits_of, promise_of, traffic_shifted, traffic_step
from agents.windows import LatencyQuantile, Window
from cachewarden.baseline import Baseline
from cachewarden.fleet import Guardrails, Service
from tests.unit.agents.actuator_world import MIB, SETTINGS, change, proposal

PROMISE = Promise(
    hit_ratio_before=0.80,
    hit_ratio_low=0.90,
    gain=0.15,
    lookups_per_s=1000.0,
    settle_ms=0,
    latency_us_p99_before=1000.0,
    latency_us_target=2000.0,
    reversible=True,
    refused_per_s_before=0.0,
)


def window(ratio=0.95, lookups=20_000, **other):
    hits = round(lookups * ratio)
    return Window(**{"window_ms": 20_000, "hits": hits, "misses": lookups - hits, "refused": 0, **other})


def twin(points):
    return Drift(value=points, words="the unchanged twin")


def replayed(points, error=0.005):
    return Drift(value=points, error=error, words="the same requests without the change")


def latency(low, commands=10_000):
    return LatencyQuantile(value_us=low * 1.5, low_us=low, high_us=low * 2, commands=commands)


def ruling(*windows, promise=PROMISE, observed_ms=20_000):
    return judge(windows, promise, SETTINGS, observed_ms).ruling


def test_what_was_promised_is_kept():
    assert ruling(window(0.95)) is Ruling.KEEP


def test_a_little_less_than_the_low_end_is_within_the_margin():
    assert ruling(window(0.881)) is Ruling.KEEP


def test_less_gain_than_promised_rolls_back_once_it_no_longer_improves():
    assert ruling(window(0.85)) is Ruling.CONTINUE
    assert ruling(window(0.85), window(0.852)) is Ruling.ROLL_BACK


def test_a_change_below_its_promise_that_still_gave_half_of_the_predicted_gain_is_kept_and_says_so():
    promise = replace(PROMISE, hit_ratio_before=0.55, hit_ratio_low=0.73, gain=0.2)
    kept = judge([window(ratio=0.70)] * SETTINGS.observation_windows_max, promise, SETTINGS, 10**9)
    assert kept.ruling is Ruling.KEEP
    assert "below its promise" in kept.reason
    assert "15.0 points" in kept.reason


def test_a_change_that_gave_less_than_half_of_the_predicted_gain_is_taken_back():
    promise = replace(PROMISE, hit_ratio_before=0.55, hit_ratio_low=0.73, gain=0.2)
    taken = judge([window(ratio=0.63)] * SETTINGS.observation_windows_max, promise, SETTINGS, 10**9)
    assert taken.ruling is Ruling.ROLL_BACK


def test_a_ratio_that_still_improves_gets_another_window_but_not_for_ever():
    rising = [window(0.80 + 0.015 * i) for i in range(1, 5)]
    assert [ruling(*rising[:n]) for n in range(1, 5)] == [Ruling.CONTINUE] * 3 + [Ruling.ROLL_BACK]


def test_a_change_gets_the_time_that_it_needs_to_settle():
    slow = replace(PROMISE, settle_ms=50_000)
    assert ruling(window(0.80), window(0.80), promise=slow, observed_ms=40_000) is Ruling.CONTINUE
    assert ruling(window(0.80), window(0.80), promise=slow, observed_ms=60_000) is Ruling.ROLL_BACK
    assert ruling(*[window(0.80)] * SETTINGS.observation_windows_max, promise=slow) is Ruling.ROLL_BACK


def test_a_fall_below_the_guardrail_is_an_alarm_at_once():
    assert alarm(window(0.70), PROMISE, SETTINGS)
    assert alarm(window(0.76), PROMISE, SETTINGS) is None


def test_a_donor_that_was_predicted_to_fall_is_measured_against_the_prediction():
    donor = replace(PROMISE, hit_ratio_low=0.70, gain=-0.08)
    assert alarm(window(0.68), donor, SETTINGS) is None
    assert alarm(window(0.60), donor, SETTINGS)


def test_few_lookups_raise_no_alarm_for_noise():
    assert alarm(window(0.70, lookups=110), PROMISE, SETTINGS) is None
    assert alarm(window(0.0, lookups=99), PROMISE, SETTINGS) is None
    assert alarm(window(0.40, lookups=110), PROMISE, SETTINGS)


@pytest.mark.parametrize(("low", "raised"), [(3000.0, False), (4001.0, True)])
def test_latency_alarms_above_the_factor_by_the_lower_edge_of_its_bucket(low, raised):
    assert (alarm(window(latency=latency(low)), PROMISE, SETTINGS) is not None) == raised


def test_latency_below_the_target_is_never_an_alarm_whatever_the_factor():
    quick = replace(PROMISE, latency_us_p99_before=20.0)
    assert alarm(window(latency=latency(1900.0)), quick, SETTINGS) is None


def test_refused_writes_that_were_not_there_before_are_an_alarm():
    assert alarm(window(refused=1), PROMISE, SETTINGS)
    assert alarm(window(refused=1), replace(PROMISE, refused_per_s_before=5.0), SETTINGS) is None
    assert alarm(window(refused=1), replace(PROMISE, refused_per_s_before=None), SETTINGS) is None


def test_without_lookups_a_reversible_promise_is_taken_back_in_the_end():
    empty = [window(lookups=0)] * 4
    assert [ruling(*empty[:n]) for n in range(1, 5)] == [Ruling.CONTINUE] * 3 + [Ruling.ROLL_BACK]


@pytest.mark.parametrize("promise", [replace(PROMISE, gain=0.0), replace(PROMISE, reversible=False)])
def test_without_lookups_what_promised_nothing_or_cannot_be_undone_is_kept_and_called_unverified(promise):
    judgement = judge([window(lookups=0)] * 4, promise, SETTINGS, 80_000)
    assert judgement.ruling is Ruling.KEEP
    assert "unverified" in judgement.reason


def test_a_window_that_cannot_be_compared_proves_nothing():
    assert ruling(Window(problem="restarted")) is Ruling.CONTINUE


def test_traffic_that_doubled_or_halved_is_noted():
    assert not traffic_shifted(window(), PROMISE)
    assert traffic_shifted(window(lookups=50_000), PROMISE)
    assert traffic_shifted(window(lookups=9_000), PROMISE)


# --- Traffic that shifts, and the twin that tells ----------------------------------------------------------------------


def test_a_gain_in_another_traffic_is_not_kept_as_one():
    shifted = [window(0.97, lookups=60_000)] * SETTINGS.observation_windows_max
    assert ruling(shifted[0]) is Ruling.CONTINUE
    ended = judge(shifted, PROMISE, SETTINGS, 10**9)
    assert ended.ruling is Ruling.ROLL_BACK
    assert "could not be shown" in ended.reason
    assert "nothing is held for or against" in ended.reason


def test_a_gain_in_another_traffic_that_cannot_be_taken_back_stays_unverified():
    lossy = replace(PROMISE, reversible=False)
    ended = judge([window(0.97, lookups=60_000)] * SETTINGS.observation_windows_max, lossy, SETTINGS, 10**9)
    assert ended.ruling is Ruling.KEEP
    assert "unverified" in ended.reason


def test_a_loss_in_another_traffic_is_not_called_less_than_promised():
    ended = judge([window(0.82, lookups=60_000)] * SETTINGS.observation_windows_max, PROMISE, SETTINGS, 10**9)
    assert "less than promised" not in ended.reason


def test_a_fall_below_the_guardrail_in_another_traffic_is_taken_back_without_blame():
    told = alarm(window(0.40, lookups=60_000), PROMISE, SETTINGS)
    assert "not held against the change" in told


def test_a_fall_that_the_unchanged_twin_shares_is_no_alarm():
    fallen = window(0.60, lookups=60_000)
    assert alarm(fallen, PROMISE, SETTINGS, drift=twin(-0.30)) is None
    assert "unchanged twin" in alarm(fallen, PROMISE, SETTINGS, drift=twin(-0.05))


def test_what_the_twin_gained_too_is_no_gain_of_the_change():
    assert ruling(window(0.95)) is Ruling.KEEP
    last = judge([window(0.95)] * SETTINGS.observation_windows_max, PROMISE, SETTINGS, 10**9, twin(0.15))
    assert last.ruling is Ruling.ROLL_BACK
    assert "twin" in last.reason


# --- Evictions, CPU, origin ---------------------------------------------------------------------------------------------


BUSY = replace(PROMISE, baseline=Baseline(evicted_per_s=50.0, misses_per_s=200.0, cpu_share=0.3))


def test_a_storm_of_evictions_is_an_alarm():
    assert alarm(window(evicted=20 * 1_900), BUSY, SETTINGS) is None
    assert "evicted per second" in alarm(window(evicted=20 * 2_100), BUSY, SETTINGS)


def test_more_evictions_with_more_traffic_are_none():
    assert alarm(window(lookups=40_000, evicted=20 * 3_900), BUSY, SETTINGS) is None


def test_evictions_that_were_never_measured_before_raise_no_alarm():
    assert alarm(window(evicted=10**6), PROMISE, SETTINGS) is None


def test_cpu_is_an_alarm_only_where_it_rose():
    assert alarm(window(cpu_us=19_900_000), BUSY, SETTINGS)
    assert alarm(window(cpu_us=18_000_000), BUSY, SETTINGS) is None
    assert alarm(window(cpu_us=19_900_000), replace(BUSY, baseline=Baseline(cpu_share=0.9)), SETTINGS) is None


def owned(**limits):
    service = Service(name="shop", url="redis://localhost:1", guardrails=Guardrails(**limits))
    return replace(BUSY, limits=limits_of(service, SETTINGS))


def test_an_origin_that_gets_more_than_it_can_answer_is_an_alarm_if_the_hit_ratio_fell():
    promise = owned(origin_load_per_s=150.0)
    assert "reach the origin" in alarm(window(0.78), promise, SETTINGS)
    assert alarm(window(0.82), promise, SETTINGS) is None
    assert alarm(window(0.78), owned(origin_load_per_s=500.0), SETTINGS) is None


def test_the_owners_limit_takes_the_place_of_the_operators():
    assert alarm(window(0.72), PROMISE, SETTINGS)
    assert alarm(window(0.72), owned(hit_ratio_drop=0.2), SETTINGS) is None
    assert alarm(window(0.95, latency=latency(1_600)), owned(latency_factor=1.1), SETTINGS) is None
    assert alarm(window(0.95, latency=latency(2_300)), owned(latency_factor=1.1), SETTINGS)


def test_a_setting_that_is_set_again_after_a_restart_promises_nothing():
    wanted = proposal(change("maxmemory", 50 * MIB), reapplies="p-0")
    promise = promise_of(wanted, 0.8, None, SETTINGS)
    assert (promise.gain, promise.hit_ratio_low) == (0.0, 0.0)
    assert judge([window(0.05)], promise, SETTINGS, 10**9).ruling is Ruling.KEEP


# --- Traffic that moves the hit ratio by itself ---------------------------------------------------------------------

UNSTEADY = replace(PROMISE, hit_ratio_low=0.805, gain=0.02, gain_error=0.01, baseline=Baseline(hit_ratio_step=0.05))
LOSS = replace(UNSTEADY, hit_ratio_low=0.785, gain=-0.01, gain_error=0.003)


def at_the_end(ratio, promise):
    return ruling(*[window(ratio)] * SETTINGS.observation_windows_max, promise=promise)


def test_a_shortfall_within_what_the_traffic_does_by_itself_is_watched_as_long_as_may_be():
    assert ruling(window(0.77), promise=UNSTEADY) is Ruling.CONTINUE
    assert ruling(window(0.77), promise=replace(UNSTEADY, baseline=Baseline(hit_ratio_step=0.001))) is Ruling.ROLL_BACK


def test_until_steps_are_known_the_scatter_of_the_window_before_stands_for_them():
    scattered = tuple((500, misses) for misses in (30, 170, 60, 150, 90, 100))
    alike = tuple((5_000, 1_000) for _ in range(6))
    unknown = replace(UNSTEADY, baseline=Baseline(parts=scattered))
    assert ruling(window(0.77, lookups=3_000), promise=unknown) is Ruling.CONTINUE
    assert ruling(window(0.77), promise=replace(UNSTEADY, baseline=Baseline(parts=alike))) is Ruling.ROLL_BACK
    assert ruling(window(0.77), promise=replace(UNSTEADY, baseline=Baseline())) is Ruling.ROLL_BACK


WARMING = tuple((500, misses) for misses in (250, 200, 150, 110, 90, 80))


def test_a_cache_that_warms_up_is_no_unsteady_traffic():
    drained = replace(UNSTEADY, hit_ratio_before=0.70, hit_ratio_low=0.76, gain=0.08, baseline=Baseline(parts=WARMING))
    assert at_the_end(0.655, drained) is Ruling.ROLL_BACK
    assert traffic_step(Baseline(parts=WARMING)) < 0.5 * traffic_step(Baseline(parts=WARMING[::2] + WARMING[1::2]))


def test_a_deep_fall_that_nothing_explains_takes_even_mere_growth_back():
    grown = replace(UNSTEADY, only_grows=True, hit_ratio_before=0.70, baseline=Baseline(parts=WARMING))
    assert at_the_end(0.30, grown) is Ruling.ROLL_BACK
    assert at_the_end(0.30, replace(grown, baseline=Baseline(hit_ratio_step=0.05))) is Ruling.KEEP


def test_in_the_end_prediction_and_measurement_are_put_together():
    assert at_the_end(0.782, UNSTEADY) is Ruling.KEEP
    assert at_the_end(0.775, UNSTEADY) is Ruling.ROLL_BACK


def test_no_prediction_is_surer_than_what_was_measured():
    assert at_the_end(0.775, replace(UNSTEADY, gain_error=0.0)) is Ruling.ROLL_BACK


def test_all_windows_count_and_not_the_last_alone():
    windows = [window(r) for r in (0.80, 0.80, 0.79, 0.775)]
    assert ruling(*windows, promise=UNSTEADY) is Ruling.KEEP


def test_a_shortfall_that_the_traffic_cannot_have_made_is_evidence():
    windows = [window(0.60)] * SETTINGS.observation_windows_max
    assert ruling(*windows, promise=UNSTEADY) is Ruling.ROLL_BACK


def test_who_gives_memory_away_as_predicted_is_left_alone_in_a_bad_minute_and_not_in_four_of_them():
    assert ruling(window(0.755), promise=LOSS) is Ruling.CONTINUE
    assert at_the_end(0.762, LOSS) is Ruling.KEEP
    assert at_the_end(0.70, LOSS) is Ruling.ROLL_BACK


def test_a_window_that_matches_its_baseline_to_the_last_digit_divides_by_nothing():
    still = replace(LOSS, hit_ratio_before=1.0, hit_ratio_low=0.99, baseline=Baseline(hit_ratio_step=0.0))
    assert ruling(window(0.0), promise=replace(still, only_grows=True)) is Ruling.KEEP
    assert ruling(window(1.0), promise=still) is Ruling.KEEP


def test_a_fall_below_the_guardrail_must_be_more_than_what_the_traffic_does():
    drop = SETTINGS.guardrail_hit_ratio_drop
    below = window(0.80 - 1.5 * drop)
    assert alarm(below, UNSTEADY, SETTINGS) is None
    assert alarm(below, replace(UNSTEADY, baseline=Baseline()), SETTINGS) is not None


def test_no_traffic_permits_more_than_the_guardrail_twice():
    wild = replace(UNSTEADY, baseline=Baseline(hit_ratio_step=0.5))
    assert alarm(window(0.80 - 2.2 * SETTINGS.guardrail_hit_ratio_drop), wild, SETTINGS) is not None


def test_a_twin_tells_more_than_the_steps_of_the_past():
    below = window(0.80 - 1.5 * SETTINGS.guardrail_hit_ratio_drop)
    assert alarm(below, UNSTEADY, SETTINGS, drift=twin(0.0)) is not None


# --- What a replay of the same requests without the change tells ------------------------------------------------------


def test_a_burst_that_the_replay_without_the_change_shows_too_is_no_alarm_whatever_its_size():
    fallen = window(0.30)
    assert alarm(fallen, PROMISE, SETTINGS) is not None
    assert alarm(fallen, PROMISE, SETTINGS, drift=replayed(-0.52)) is None


def test_a_fall_that_the_replay_does_not_show_is_an_alarm_and_says_what_the_traffic_did():
    told = alarm(window(0.60), UNSTEADY, SETTINGS, drift=replayed(+0.02))
    assert told is not None
    assert "the same requests without the change: +2.0 points" in told


def test_a_fall_is_no_alarm_within_the_error_of_the_replay_and_never_beyond_the_guardrail_once_more():
    drop = SETTINGS.guardrail_hit_ratio_drop
    below = window(0.80 - 1.5 * drop)
    assert alarm(below, PROMISE, SETTINGS, drift=replayed(0.0, error=0.001)) is not None
    assert alarm(below, PROMISE, SETTINGS, drift=replayed(0.0, error=drop)) is None
    assert alarm(window(0.80 - 2.2 * drop), PROMISE, SETTINGS, drift=replayed(0.0, error=0.5)) is not None


def test_a_rise_that_the_traffic_made_does_not_fulfil_a_promise():
    windows = [window(0.95)] * SETTINGS.observation_windows_max
    assert judge(windows, PROMISE, SETTINGS, 10**9).ruling is Ruling.KEEP
    assert judge(windows, PROMISE, SETTINGS, 10**9, replayed(+0.14)).ruling is Ruling.ROLL_BACK


def test_a_shortfall_within_the_error_of_the_replay_is_watched_and_in_the_end_weighed_with_the_prediction():
    promise = replace(PROMISE, gain=0.12, gain_error=0.02)
    short = window(0.87)
    first = judge([short], promise, SETTINGS, 10**9, replayed(0.0, error=0.02))
    assert first.ruling is Ruling.CONTINUE
    ended = judge([short] * SETTINGS.observation_windows_max, promise, SETTINGS, 10**9, replayed(0.0, error=0.02))
    assert ended.ruling is Ruling.KEEP
    assert "known to 0.020" in ended.reason


@pytest.mark.parametrize(
    ("gained", "ruled"),
    [(-0.10, Ruling.KEEP), (-0.005, Ruling.ROLL_BACK), (0.001, Ruling.ROLL_BACK), (0.06, Ruling.KEEP)],
)
def test_memory_that_gives_nothing_beyond_the_traffic_goes_back_unless_the_replay_must_be_wrong(gained, ruled):
    promise = replace(PROMISE, hit_ratio_low=0.85, gain=0.06, only_grows=True)
    windows = [window(0.80 + gained)] * SETTINGS.observation_windows_max
    assert judge(windows, promise, SETTINGS, 10**9, replayed(0.0, error=0.005)).ruling is ruled


def test_other_traffic_says_nothing_for_or_against_a_change_unless_a_replay_of_it_tells():
    other = window(0.95, lookups=60_000)
    assert ruling(other) is Ruling.CONTINUE
    assert judge([other], PROMISE, SETTINGS, 20_000, replayed(0.0)).ruling is Ruling.KEEP


def growth(before="100000000", after="120000000", **other):
    return promise_of(proposal(change("maxmemory", after, before=before), *other.get("more", ())), 0.80, None, SETTINGS)


def test_more_memory_is_never_blamed_for_a_fall_of_the_hit_ratio():
    promise = replace(growth(), baseline=Baseline(hit_ratio_step=0.01), lookups_per_s=1000.0)
    assert promise.only_grows
    assert alarm(window(0.40), promise, SETTINGS) is None
    windows = [window(0.40)] * SETTINGS.observation_windows_max
    assert ruling(*windows, promise=promise) is Ruling.KEEP


def test_less_memory_another_policy_beside_and_values_that_are_no_bytes_are_no_mere_growth():
    assert not growth(before="120000000", after="100000000").only_grows
    assert not growth(before="0").only_grows
    assert not growth(after="64mb").only_grows
    assert not growth(more=(change("maxmemory-policy", "allkeys-lfu"),)).only_grows
