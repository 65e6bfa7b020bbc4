"""The look that a what-if rests on comes from the collector, or is told to be missing."""

from __future__ import annotations

import pytest

from cachewarden.errors import OperatingError
from cachewarden.observation import Snapshot
from cachewarden.settings import CacheOptimizerSettings
from cluster.backend import AgentBackend
from cluster.wiring import make_plan
from tests.unit.serve.serve_world import captured_look, fleet


class Collecting:
    """A runtime in which only the collector lives, or nobody."""

    def __init__(self, look: Snapshot | None, *, alive: bool = True) -> None:
        self.look = look
        self.alive = alive

    async def send(self, sender: str, to: str, message: object) -> None:
        raise AssertionError("a question must not send anything")

    async def query(self, agent: str, method: str, *arguments: object) -> object:
        assert (agent, method, arguments) == ("collector", "snapshot", ("api_gateway",))
        if not self.alive:
            raise RuntimeError("agent `collector` is not running")
        return self.look


async def test_the_newest_look_is_the_collectors(tmp_path):
    plan = make_plan(fleet(), CacheOptimizerSettings(_env_file=None, state_dir=tmp_path))
    look = captured_look()
    assert await AgentBackend(plan, Collecting(look)).snapshot("api_gateway") is look
    with pytest.raises(OperatingError, match="the collector does not answer"):
        await AgentBackend(plan, Collecting(None, alive=False)).snapshot("api_gateway")
