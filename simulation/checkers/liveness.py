"""After the last fault all works again within a bound: agents live, cycles run, no cache stays busy or unseen."""

from __future__ import annotations

from collections.abc import Sequence

from simulation.checkers.checker import Checker, WorldView

__all__ = ["Liveness"]

_SETTLED_MS = 300_000
"""How long after the last fault cycles have to run again."""
_CYCLE_MS_MAX = 240_000
"""Longest time between two cycles from then on: an interval and the deadlines of all stages."""
_BUSY_MS_MAX = 1_500_000
"""Longest time that a service may be kept busy by one change."""


class Liveness(Checker):
    """Watches the number of cycles while it is quiet."""

    name = "liveness"

    def __init__(self) -> None:
        self._quiet_since_ms: int | None = None
        self._cycles: dict[str, tuple[int, int, int]] = {}
        """Deployment to (life of its coordinator, cycle, since when)."""

    def tick(self, world: WorldView) -> Sequence[str]:
        """Say which deployment has stopped to run cycles although nothing fails."""
        if not world.quiet:
            return ()
        if self._quiet_since_ms is None:
            self._quiet_since_ms = world.now_ms
        found: list[str] = []
        for name, deployment in world.deployments.items():
            life, cycle, stage = deployment.progress()
            if self._cycles.get(name, (-1, -1, 0))[:2] != (life, cycle):
                self._cycles[name] = (life, cycle, world.now_ms)
            stood_ms = world.now_ms - self._cycles[name][2]
            if world.now_ms - self._quiet_since_ms > _SETTLED_MS and stood_ms > _CYCLE_MS_MAX:
                found.append(f"{name}: cycle {cycle} ({stage}) has been the last for {stood_ms / 1000:.0f} s")
        return found

    def at_end(self, world: WorldView) -> Sequence[str]:
        """Say what is still not as it should be."""
        found: list[str] = []
        if self._quiet_since_ms is None or world.now_ms - self._quiet_since_ms < _SETTLED_MS:
            return found
        for name in sorted(world.deployments):
            deployment = world.deployments[name]
            dead = sorted(set(deployment.placed) - set(deployment.shells))
            found += [f"{name}: agent `{agent}` does not live" for agent in dead]
            state = deployment.fleet_state()
            if state is None:
                continue
            found += [f"{name}: `{service}` is not seen: {why}" for service, why in sorted(state.missing.items())]
            for execution in state.executions:
                age_ms = world.now_ms - execution.started_at_ms
                if not execution.state.final and age_ms > _BUSY_MS_MAX:
                    found.append(
                        f"{name}: `{execution.proposal.service}` has been busy with `{execution.proposal.proposal_id}` "
                        f"for {age_ms / 1000:.0f} s ({execution.state.value}: {execution.reason})"
                    )
        return found
