"""What is simulated is what runs: the same agents, the same ports, the same table of performers."""

from __future__ import annotations

import inspect

import pytest

from cachewarden import shell
from cachewarden.performing import performers
from cluster.wiring import ALL_AGENTS, Plan, build_agent, build_shell
from simulation import node
from simulation.deployment import AGENTS
from simulation.scenario import load_scenario
from simulation.world import World, default_constitution

CALM = "two-caches-on-a-calm-day"


class NoMailbox:
    async def send(self, sender, to, message):
        raise AssertionError("nothing is sent")


@pytest.fixture
def world():
    return World(load_scenario(CALM), 0, constitution=default_constitution())


def plan_of(world) -> Plan:
    return Plan(fleet=world.fleet, settings=world.settings, secret=b"secret")


def test_the_same_agents_are_started_in_the_same_order():
    assert AGENTS == ALL_AGENTS


@pytest.mark.parametrize("name", ALL_AGENTS)
def test_each_agent_is_of_the_same_class(world, name):
    assert type(world.deployments["a"].build_agent(name, 1)) is type(build_agent(plan_of(world), name))


@pytest.mark.parametrize("name", ALL_AGENTS)
async def test_each_agent_has_the_same_ports_and_no_others(world, name):
    real = build_shell(plan_of(world), name, NoMailbox())._ports
    deployment = world.deployments["a"]
    simulated = deployment.ports_of(name, deployment.node_of(name))
    for port in ("journal", "leases", "blackboard"):
        assert (getattr(simulated, port) is None) == (getattr(real, port) is None), port
    assert set(simulated.targets) == set(real.targets)
    await real.close()


def test_both_shells_perform_effects_by_the_same_table():
    assert node.performers is shell.performers is performers
    assert node.failure_of is shell.failure_of
    assert node.drafts_of is shell.drafts_of


def test_both_shells_treat_the_same_effects_by_themselves():
    own = ("m.Record", "m.Send", "m.Publish", "m.SetTimer")
    for take in (shell.AgentShell._take, node.NodeShell._perform_all):
        source = inspect.getsource(take)
        assert all(f"isinstance(effect, {kind})" in source for kind in own)
