"""The envoy and its presences: register, greet, register again, and never more than a note in the health check."""

from __future__ import annotations

import pickle

import pytest

from cachewarden.machine import Agent, EffectFailed, Send, SetTimer, Started, TimerFired
from cachewarden.peer_messages import PeerReport
from cachewarden.peering import Announce, Announced, ClaimCursor
from coordination.delivery import Delivery
from coordination.envoy import Envoy
from coordination.presence import Presence

NOW = 1_000_000
PEER = "coordinator_http"


def failed(effect, kind="PeerUnavailable", reason="answered 500"):
    return EffectFailed(ref=effect.ref, effect="Announce", kind=kind, reason=reason, details={"reason": reason})


def registered():
    presence = Presence(PEER, interval_ms=30_000)
    (call,) = presence.step(Started(), NOW)
    (timer,) = presence.step(Announced(ref=call.ref, peer=PEER, program="p"), NOW)
    return presence, timer


def test_it_registers_first_and_greets_from_then_on():
    presence, timer = registered()
    assert timer.due_ms == NOW + 30_000
    assert presence.health().healthy
    (call,) = presence.step(TimerFired(ref=timer.ref), NOW + 30_000)
    assert call == Announce(ref=call.ref, peer=PEER, first=False)


def test_it_registers_again_at_once_where_it_was_forgotten():
    presence, timer = registered()
    (greeting,) = presence.step(TimerFired(ref=timer.ref), NOW)
    (again,) = presence.step(failed(greeting, "PeerForgot"), NOW)
    assert again.first
    presence.step(Announced(ref=again.ref, peer=PEER, program="p"), NOW)
    assert presence.health().healthy


def test_one_that_forgets_us_even_while_we_register_is_not_asked_in_a_circle():
    presence = Presence(PEER)
    (call,) = presence.step(Started(), NOW)
    (effect,) = presence.step(failed(call, "PeerForgot"), NOW)
    assert isinstance(effect, SetTimer)


def test_a_dead_one_is_asked_more_and_more_rarely():
    presence, now_ms, calls = Presence(PEER), NOW, 0
    (effect,) = presence.step(Started(), now_ms)
    while now_ms < NOW + 3_600_000:
        calls += 1
        (timer,) = presence.step(failed(effect), now_ms)
        now_ms = timer.due_ms + timer.spread_ms
        (effect,) = presence.step(TimerFired(ref=timer.ref), now_ms)
    assert calls < 40
    assert presence.health().detail == "answered 500"


@pytest.mark.parametrize("kind", ["PeerRefused", "PeerViolation", "RuntimeError"])
def test_why_it_failed_is_told_in_words_for_strangers(kind):
    presence = Presence(PEER)
    (call,) = presence.step(Started(), NOW)
    presence.step(failed(call, kind, "is another program (`x`), not `y`"), NOW)
    told = presence.health()
    expected = {
        "PeerRefused": "is another program (`x`), not `y`",
        "PeerViolation": "answers with another constitutional hash",
        "RuntimeError": "cannot be asked",
    }
    assert told.detail == expected[kind]
    assert told.violations == (kind == "PeerViolation")


def test_an_answer_to_an_earlier_call_changes_nothing():
    presence, timer = registered()
    presence.step(TimerFired(ref=timer.ref), NOW)
    assert presence.step(Announced(ref="presence:coordinator_http:1", peer=PEER, program="p"), NOW) == ()


def reports(effects):
    return [e.message for e in effects if isinstance(e, Send)]


def test_the_envoy_tells_the_coordinator_what_is_new_and_otherwise_every_few_seconds():
    envoy = Envoy(presences=[Presence(PEER)])
    effects = envoy.step(Started(), NOW)
    (report,) = reports(effects)
    assert isinstance(report, PeerReport)
    assert not report.peers[0].healthy
    (call,) = [e for e in effects if isinstance(e, Announce)]
    (report,) = reports(envoy.step(Announced(ref=call.ref, peer=PEER, program="p"), NOW))
    assert report.peers[0].healthy
    assert reports(envoy.step(TimerFired(ref="something else"), NOW)) == []
    (timer,) = [e for e in effects if isinstance(e, SetTimer) and e.ref == "envoy:report"]
    assert len(reports(envoy.step(TimerFired(ref=timer.ref), timer.due_ms))) == 1


def test_each_part_takes_only_what_is_its_own():
    envoy = Envoy(Delivery(), [Presence(PEER), Presence("blackboard_http")])
    effects = envoy.step(Started(), NOW)
    assert isinstance(envoy, Agent)
    assert len([e for e in effects if isinstance(e, Announce)]) == 2
    assert len([e for e in effects if isinstance(e, ClaimCursor)]) == 1
    assert [p.name for p in envoy.peers(NOW)] == ["integrity", PEER, "blackboard_http"]


def test_it_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(Envoy(Delivery(), [Presence(PEER)]))).name == "envoy"
