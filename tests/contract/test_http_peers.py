"""What every adapter of an HTTP peer promises, fake and real; the real ones against a server with ACGS's traps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from cachewarden.chain import seal
from cachewarden.errors import OperatingError, PeerForgot, PeerRefused, PeerUnavailable, PeerViolation, SettingsError
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, RecordKind
from cachewarden.peering import Opinion
from cachewarden.ports import RecordDraft
from coordination.delivery_events import EVENT_TYPES, SEVERITIES, event_of
from coordination.http_constitutional import HttpConstitutional, opinion_of
from coordination.http_integrity import HttpIntegrity
from coordination.http_presence import HttpBlackboardPresence, HttpCoordinatorPresence
from coordination.http_wire import Credentials, HttpWire, require_http_url
from simulation.fake_peers import FakeConstitutional, FakeIntegrity, FakePresence
from tests.acgs_lookalike import Lookalike, serving

SECRET = "a-token-that-nobody-may-see"
FAULTS = {
    "dead": (PeerUnavailable, None),
    "error": (PeerUnavailable, "error"),
    "refused": (PeerRefused, "tenant"),
    "wrong_hash": (PeerViolation, "wrong_hash"),
    "cut_after": (PeerUnavailable, "cut_after"),
}


def event(kind: str = RecordKind.STEP_APPLIED.value, seq: int = 1, **payload: Any) -> dict[str, Any]:
    draft = RecordDraft(at_ms=5, kind=kind, agent="actuator", service="cart", subject_id="p-1", payload=payload)
    return event_of(seal(draft, seq, "0" * 64))


def wire(lookalike: Lookalike, peer: str = "peer", timeout_s: float = 5.0) -> HttpWire:
    return HttpWire(peer, lookalike.url, credentials=Credentials(token=SECRET, tenant_id="t-1"), timeout_s=timeout_s)


@pytest.fixture(scope="module")
def server():
    with serving(Lookalike()) as lookalike:
        yield lookalike


@pytest.fixture
def acgs(server: Lookalike) -> Lookalike:
    server.fault, server.program = lambda: "ok", "multi-agent-coordinator"
    for kept in (server.events, server.asked, server.agents, server.knowledge):
        kept.clear()
    return server


@dataclass
class Peer:
    port: Any
    fail: Any
    taken: Any


@pytest.fixture(params=["fake", "real"])
async def integrity(request, acgs: Lookalike) -> AsyncIterator[Peer]:
    if request.param == "fake":
        fake = FakeIntegrity()
        yield Peer(
            fake, lambda fault: setattr(fake, "fault", lambda: fault), lambda: [e["request_id"] for e in fake.events]
        )
        return
    port = HttpIntegrity(wire(acgs))

    def fail(fault: str) -> None:
        if fault == "dead":
            port._wire._client.base_url = "http://127.0.0.1:9"
        else:
            acgs.fault = lambda: FAULTS[fault][1]

    yield Peer(port, fail, lambda: [e.request_id for e in acgs.events])
    await port.close()


@pytest.fixture(params=["fake", "real"])
async def constitutional(request, acgs: Lookalike) -> AsyncIterator[Peer]:
    if request.param == "fake":
        fake = FakeConstitutional()
        yield Peer(fake, lambda fault: setattr(fake, "fault", lambda: fault), lambda: [c for c, _ in fake.asked])
        return
    port = HttpConstitutional(wire(acgs))

    def fail(fault: str) -> None:
        if fault == "dead":
            port._wire._client.base_url = "http://127.0.0.1:9"
        else:
            acgs.fault = lambda: FAULTS[fault][1]

    yield Peer(port, fail, lambda: [v.content for v in acgs.asked])
    await port.close()


# --- Integrity ------------------------------------------------------------------------------------------------------


async def test_an_event_is_taken_under_our_id(integrity: Peer):
    sent = event()
    assert await integrity.port.deliver(sent)
    assert integrity.taken() == [sent["request_id"]]


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_not_a_201_of_our_peer_is_not_delivered(integrity: Peer, fault: str):
    integrity.fail(fault)
    with pytest.raises(FAULTS[fault][0]) as error:
        await integrity.port.deliver(event())
    # Nobody learns an address or a token from it.
    assert "127.0.0.1" not in str(error.value)
    assert SECRET not in str(error.value) + repr(error.value.__dict__)
    # It may have been done all the same, and then the same record comes again under the same id.
    done = fault == "cut_after" or (fault == "wrong_hash" and isinstance(integrity.port, HttpIntegrity))
    assert len(integrity.taken()) == done


@pytest.mark.parametrize("kind", [*RecordKind, "damaged_entry", "a_kind_of_tomorrow"])
async def test_a_record_of_each_kind_is_taken(acgs: Lookalike, kind: str):
    port = HttpIntegrity(wire(acgs))
    await port.deliver(event(str(kind), decision="deny", reason="because of `secret:key:1`"))
    await port.close()
    (taken,) = acgs.events
    assert taken.event_type in EVENT_TYPES
    assert taken.severity in SEVERITIES
    assert taken.metadata["constitutional_hash"] == CONSTITUTIONAL_HASH
    assert "secret" not in taken.model_dump_json()
    assert ("event_type_reason" in taken.metadata) == (kind == "a_kind_of_tomorrow")


async def test_a_call_carries_hash_token_tenant_and_our_id(acgs: Lookalike):
    port = HttpIntegrity(wire(acgs))
    sent = event()
    await port.deliver(sent)
    await port.close()
    assert acgs.headers["x-constitutional-hash"] == CONSTITUTIONAL_HASH
    assert acgs.headers["authorization"] == f"Bearer {SECRET}"
    assert acgs.headers["x-tenant-id"] == "t-1"
    assert acgs.headers["x-request-id"] == sent["request_id"]


async def test_a_slow_service_is_given_up_within_the_timeout(acgs: Lookalike):
    acgs.fault = lambda: "slow"
    port = HttpIntegrity(wire(acgs, timeout_s=0.1))
    with pytest.raises(PeerUnavailable, match=r"no answer within 0\.1 s"):
        await port.deliver(event())
    await port.close()


@pytest.mark.parametrize(("fault", "error"), [("garbage", PeerRefused), ("redirect", PeerRefused)])
async def test_a_200_and_a_redirect_are_no_201(acgs: Lookalike, fault: str, error: type[OperatingError]):
    acgs.fault = lambda: fault
    port = HttpIntegrity(wire(acgs))
    with pytest.raises(error):
        await port.deliver(event())
    await port.close()
    assert acgs.events == []


# --- Constitutional AI ----------------------------------------------------------------------------------------------


async def test_an_opinion_is_given(constitutional: Peer):
    opinion = await constitutional.port.validate(
        "a reversible change of a cache, observed afterwards", {"high_risk": False}
    )
    assert opinion.compliant
    assert 0.7 <= opinion.score <= 1.0
    assert len(constitutional.taken()) == 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_not_an_opinion_raises(constitutional: Peer, fault: str):
    constitutional.fail(fault)
    with pytest.raises(FAULTS[fault][0]):
        await constitutional.port.validate("a change", {})


async def test_an_objection_is_an_opinion_too(acgs: Lookalike):
    port = HttpConstitutional(wire(acgs))
    opinion = await port.validate("a dangerous change", {})
    await port.close()
    assert not opinion.compliant
    assert opinion.violated == ("non-maleficence",)


GOOD = {
    "compliant": True,
    "score": 0.9,
    "constitutional_hash": CONSTITUTIONAL_HASH,
    "violated_principles": [],
    "reasoning": [],
}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"constitutional_hash": "0123456789abcdef"}, PeerViolation),
        ({"constitutional_hash": None}, PeerViolation),
        ({"compliant": "true"}, PeerUnavailable),
        ({"compliant": None}, PeerUnavailable),
        ({"compliant": 1}, PeerUnavailable),
        ({"score": 1.5}, PeerUnavailable),
        ({"score": float("nan")}, PeerUnavailable),
        ({"score": True}, PeerUnavailable),
        ({"score": "0.9"}, PeerUnavailable),
        ({"violated_principles": ["fairness"]}, PeerUnavailable),
    ],
)
def test_a_body_that_is_nearly_an_opinion_is_none(change: dict[str, Any], error: type[OperatingError]):
    with pytest.raises(error):
        opinion_of("constitutional_ai", {**GOOD, **change})


@pytest.mark.parametrize("body", [None, [], "yes", 1, [GOOD]])
def test_a_body_of_another_shape_is_none(body: Any):
    with pytest.raises(PeerUnavailable):
        opinion_of("constitutional_ai", body)


def test_the_words_of_an_opinion_are_bounded_and_cleaned():
    body = {
        **GOOD,
        "compliant": False,
        "reasoning": ["x\x1b[31m" + "y" * 10_000] * 1_000,
        "violated_principles": "no list",
    }
    opinion = opinion_of("constitutional_ai", body)
    assert opinion == Opinion(compliant=False, score=0.9, reasoning=opinion.reasoning)
    assert len(opinion.reasoning) == 10
    assert all(len(text) <= 200 and text.isprintable() for text in opinion.reasoning)


# --- Presence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HttpCoordinatorPresence, HttpBlackboardPresence])
@pytest.mark.parametrize("real", [False, True])
async def test_it_registers_greets_and_is_told_when_it_was_forgotten(acgs: Lookalike, kind: Any, real: bool):
    acgs.program = kind.program
    port = kind(wire(acgs)) if real else FakePresence("peer", kind.program)
    assert await port.announce(first=True) == kind.program
    assert await port.announce(first=False) == kind.program
    if real:
        acgs.agents.clear()
        acgs.knowledge.clear()
    else:
        port.forget()
    with pytest.raises(PeerForgot):
        await port.announce(first=False)
    await port.announce(first=True)
    await port.close()


@pytest.mark.parametrize("program", ["agent-hitl", "coordinator_service", "blackboard_service", None, "\x00"])
@pytest.mark.parametrize("kind", [HttpCoordinatorPresence, HttpBlackboardPresence])
async def test_nothing_is_written_to_another_program(acgs: Lookalike, kind: Any, program: Any):
    acgs.program = program
    port = kind(wire(acgs))
    with pytest.raises(PeerRefused, match="is another program"):
        await port.announce(first=True)
    await port.close()
    assert (acgs.agents, acgs.knowledge) == ({}, {})


async def test_the_coordinator_lists_us_as_available(acgs: Lookalike):
    port = HttpCoordinatorPresence(wire(acgs))
    await port.announce(first=True)
    await port.announce(first=False)
    await port.close()
    assert acgs.agents[AGENT_ID]["status"] == "available"
    assert acgs.agents[AGENT_ID]["greetings"] == 1


# --- Addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8002",
        "ftp://x",
        "http://",
        "http://user:pw@host",
        "http://host?x=1",
        "http://[bad",
        "http://h:99999",
    ],
)
def test_an_address_that_cannot_be_used_is_refused_and_no_password_is_shown(url: str):
    with pytest.raises(SettingsError) as error:
        require_http_url("integrity_service_url", url)
    assert "pw" not in str(error.value)


def test_secrets_are_not_in_the_text_of_what_holds_them():
    assert SECRET not in repr(Credentials(token=SECRET))
