"""One actuator on one real server, with a journal and leases in memory: playbooks under faults, without a whole fleet.

Everything of the change is real: machine, shell, adapter, server. What tests break is the server, the actuator's life
(the journal stays, as it would), or a setting by another hand. `on_record` says when: at the very record that announces
or confirms a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import redis

from agents.actuator import Actuator
from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.knobs import action_class_of_change
from cachewarden.messages import AuditRecord, Execution, KnobChange, Proposal
from cachewarden.performing import Ports
from cachewarden.protocol import ExecutionReport
from cachewarden.settings import CacheOptimizerSettings, load_settings
from cachewarden.shell import AgentShell
from coordination.redis_target import RedisTarget, TargetLimits
from simulation.fake_journal import FakeJournal
from simulation.fake_leases import FakeLeaseStore
from tests.contract.conftest import SystemClock
from tests.contract.real_servers import RealServer
from tests.unit.agents.actuator_world import order, proposal

__all__ = ["Bench", "HookedJournal", "Traffic", "change_of"]

MIB = 1 << 20


async def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Return the first true value of `condition`; fails when there is none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s:g} s"
        await asyncio.sleep(0.05)
    return value


class HookedJournal(FakeJournal):
    """A journal that runs a hook once, right after the record that it waits for is durable."""

    def __init__(self) -> None:
        super().__init__()
        self._waits: Callable[[AuditRecord], bool] | None = None
        self._hook: Callable[[], Awaitable[None]] | None = None
        self.hooked = asyncio.Event()

    def on(self, waits: Callable[[AuditRecord], bool], hook: Callable[[], Awaitable[None]]) -> None:
        self._waits, self._hook = waits, hook

    async def append(self, drafts: Any) -> list[AuditRecord]:
        written = await super().append(drafts)
        hook = self._hook
        if hook is not None and self._waits is not None and any(self._waits(r) for r in written):
            self._hook = None
            await hook()
            self.hooked.set()
        return written


class Traffic:
    """An application in a thread: reads `keys` of its own skew, writes what it misses, until it is stopped."""

    def __init__(
        self, port: int, *, keys: int = 2_000, value_bytes: int = 500, per_s: int = 1_500, password: str | None = None
    ) -> None:
        self._password = password
        self._port, self._keys, self._value, self._per_s = port, keys, b"v" * value_bytes, per_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.asks_anew = False
        """Whether each read is of a key that was never there: a regression that no setting causes."""

    def _run(self) -> None:
        client = redis.Redis(port=self._port, password=self._password, protocol=2, socket_timeout=5)
        dice, number = random.Random(5), 0
        while not self._stop.wait(0.02):
            wanted = []
            for _ in range(self._per_s // 50):
                number += 1
                rank = int(self._keys * dice.random() ** 3)
                wanted.append(f"user:new:{number}" if self.asks_anew else f"user:{rank}")
            with contextlib.suppress(redis.RedisError):
                pipe = client.pipeline(transaction=False)
                for key in wanted:
                    pipe.get(key)
                found = pipe.execute()
                pipe = client.pipeline(transaction=False)
                for key, value in zip(wanted, found, strict=True):
                    if value is None:
                        pipe.set(key, self._value)
                pipe.execute(raise_on_error=False)
        client.close()

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def change_of(server: RealServer, knob: str, after: object) -> KnobChange:
    """Return the change from what the server has now."""
    return KnobChange(knob=knob, before=server.admin.config_get(knob)[knob], after=str(after))


class Bench:
    """Use as `async with Bench(server, tmp_path) as bench`; `begin` hands an order over, `ended` waits for its end."""

    def __init__(self, server: RealServer, folder: Path, lease_ttl_ms: int = 15_000, **wishes: Any) -> None:
        password, username = wishes.pop("password", None), wishes.get("username")
        self.server = server
        self._password = password
        plain = {"mode": "auto", "patterns": (KeyPattern(prefix="user:"),), "username": username}
        self.service = Service(name="shop", url=server.url, **{**plain, **wishes})
        self.settings: CacheOptimizerSettings = load_settings(
            _env_file=None,
            observation_window_ms=5_000,
            observation_windows_max=2,
            lease_ttl_ms=lease_ttl_ms,
            lead_ms=0,
            state_dir=folder,
        )
        self.clock = SystemClock()
        self.journal = HookedJournal()
        self.leases = FakeLeaseStore(self.clock)
        self.reports: list[Execution] = []
        self.lives = 0
        self._task: asyncio.Task[None] | None = None
        self._shell: AgentShell | None = None

    async def __aenter__(self) -> Bench:
        self.live()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()

    async def send(self, _sender: str, _to: str, message: Any) -> None:
        """The mailbox: only reports of executions are kept."""
        if isinstance(message, ExecutionReport):
            self.reports.append(message.execution)

    def live(self) -> None:
        """Begin a life that knows nothing but the journal."""
        self.lives += 1
        limits = TargetLimits(timeout_s=5.0, probe_server_share=0.2)
        self.target = target = RedisTarget(
            self.service, hash_secret=b"bench", clock=self.clock, password=self._password, limits=limits
        )
        agent = Actuator(
            holder=f"life-{self.lives}", settings=self.settings, fleet=Fleet(name="bench", services=(self.service,))
        )
        ports = Ports(
            clock=self.clock,
            mailbox=self,
            journal=self.journal,
            leases=self.leases,
            targets={"shop": target},
            close=target.close,
        )
        self._shell = AgentShell(agent, ports, beat_to=None)
        self._task = asyncio.create_task(self._shell.run())

    async def die(self) -> None:
        """End this life in the middle of whatever it does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def begin(
        self,
        *changes: KnobChange,
        baseline: Any = None,
        latency_us_p99_before: float | None = None,
        **fields: Any,
    ) -> Proposal:
        """Hand over an order that promises little, so that only what a test breaks decides how it ends."""
        plain: dict[str, Any] = {
            "service": "shop",
            "created_at_ms": self.clock.now_ms(),
            "expires_at_ms": self.clock.now_ms() + 60_000,
            "low": 0.05,
            "before": 0.10,
            "action_class": max(action_class_of_change(c.knob, c.before, c.after) for c in changes),
        }
        wanted = proposal(*changes, **{**plain, **fields})
        if "prediction" not in fields:
            # It promises no hits, so that want of traffic is no reason to take it back.
            nothing = replace(wanted.prediction, gain=Estimate(0.0, 0.0, 0.0), lookups_per_s=0.0)
            wanted = replace(wanted, prediction=nothing)
        more: dict[str, Any] = {"latency_us_p99_before": latency_us_p99_before}
        more |= {} if baseline is None else {"baseline": baseline}
        self.order(wanted, hit_ratio_before=fields.get("before", 0.10), **more)
        return wanted

    def order(self, wanted: Proposal, **more: Any) -> None:
        """Hand a plan over as it is."""
        assert self._shell is not None
        self._shell.deliver("coordinator", order(wanted, **more))

    async def ended(self, timeout_s: float = 110.0) -> Execution:
        """Return the execution once it has come to an end."""
        found: Execution = await until(
            lambda: self.reports[-1] if self.reports and self.reports[-1].state.final else None,
            timeout_s,
            f"the end of the change, last {self.reports[-1:]}",
        )
        return found

    async def journal_has(self, kind: str, *, stage: str, timeout_s: float = 110.0) -> AuditRecord:
        """Return the first record of a kind about a step of that stage, waiting for it."""

        def found() -> AuditRecord | None:
            records = (r for r in self.journal.records if r.kind == kind)
            return next((r for r in records if r.payload.get("what", {}).get("stage") == stage), None)

        record: AuditRecord = await until(found, timeout_s, f"`{kind}` of `{stage}`; {self.kinds} {self.reports[-1:]}")
        return record

    def on_step(self, kind: str, number: int, hook: Callable[[], Awaitable[None]]) -> None:
        """Run `hook` when the record `kind` of step `number` is durable."""
        self.journal.on(lambda r: r.kind == kind and r.payload.get("step") == number, hook)

    @property
    def kinds(self) -> list[str]:
        return [r.kind for r in self.journal.records]

    def knobs(self, wanted: Proposal) -> dict[str, str]:
        return {c.knob: self.server.admin.config_get(c.knob)[c.knob] for c in wanted.knob_changes}
