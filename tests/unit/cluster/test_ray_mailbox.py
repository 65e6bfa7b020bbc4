"""What the mailbox says where Ray, its head or an actor is gone; no Ray is started here."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from cachewarden.errors import OperatingError

ray = pytest.importorskip("ray")


@pytest.fixture
def mailbox():
    from cluster.ray_runtime import RayMailbox

    return RayMailbox("test")


def refusing(error: Exception) -> SimpleNamespace:
    """Return a handle whose calls end as Ray ends them: in the call itself, before anything is sent."""

    def remote(*_: object) -> None:
        raise error

    call = SimpleNamespace(remote=remote)
    call.options = lambda **_: call
    return SimpleNamespace(deliver=call, query=call, watch=call)


def calls(mailbox) -> dict:
    return {
        "send": lambda: mailbox.send("api", "coordinator", "hello"),
        "query": lambda: mailbox.query("coordinator", "state", 0),
        "watch": lambda: mailbox.watch("coordinator", (0, 0), 1.0),
    }


@pytest.mark.parametrize("call", ["send", "query", "watch"])
async def test_a_process_that_is_connected_to_no_ray_is_refused_and_starts_none(mailbox, call):
    mailbox._handles["coordinator"] = refusing(AssertionError("it was called"))
    with pytest.raises(OperatingError, match="connected to no Ray"):
        await calls(mailbox)[call]()
    assert not ray.is_initialized()
    assert not mailbox._handles


@pytest.mark.parametrize("call", ["send", "query", "watch"])
@pytest.mark.parametrize(
    "error",
    [
        Exception("Failed to submit task to actor ActorID(0a) due to Can't find actor 0a, it might be dead"),
        ValueError("Failed to look up actor with name 'coordinator'"),
        OSError("broken pipe"),
        TimeoutError("no answer"),
        ray.exceptions.RaySystemError("the raylet is gone"),
        ray.exceptions.RpcError("failed to connect to GCS"),
        ray.exceptions.ActorDiedError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_ray_raises_after_the_death_of_its_head_is_a_refusal_and_the_handle_is_forgotten(
    mailbox, call, error, monkeypatch
):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    mailbox._handles["coordinator"] = refusing(error)
    with pytest.raises(OperatingError, match="`coordinator` cannot be reached"):
        await calls(mailbox)[call]()
    assert not mailbox._handles


async def test_a_message_that_cannot_be_sent_for_a_reason_of_ours_is_a_bug_and_told_as_one(mailbox, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    mailbox._handles["coordinator"] = refusing(TypeError("cannot pickle a lock"))
    with pytest.raises(TypeError):
        await mailbox.send("api", "coordinator", object())


async def test_a_ray_that_ends_in_the_middle_of_a_call_is_a_refusal_whatever_it_trips_over(mailbox, monkeypatch):
    answers = iter([True, False])
    monkeypatch.setattr(ray, "is_initialized", lambda: next(answers))
    mailbox._handles["coordinator"] = refusing(AttributeError("'Worker' object has no attribute 'core_worker'"))
    with pytest.raises(OperatingError):
        await mailbox.query("coordinator", "state", 0)


async def test_who_is_cancelled_while_waiting_stays_cancelled(mailbox, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    never = asyncio.get_running_loop().create_future()
    call = SimpleNamespace(remote=lambda *_: never)
    mailbox._handles["coordinator"] = SimpleNamespace(query=call)
    asking = asyncio.create_task(mailbox.query("coordinator", "state", 0))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
