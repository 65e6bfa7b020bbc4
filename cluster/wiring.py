"""The composition root: the one place that knows every concrete class.

`Plan` says what is to be run (picklable, so that an actor can build its part on any node); `build_shell` makes one
agent with exactly the
ports that it needs: planner and validator get none, consensus the journal, the collector may look, the actuator
alone may write to caches.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio.connection import parse_url

from agents.actuator import Actuator
from agents.auditor import Auditor
from agents.collector import Collector
from agents.consensus import Consensus
from agents.planner import Planner
from agents.validator import Validator
from agents.warmth import WARMTH, Warmth, kept_warm
from cachewarden.errors import SettingsError
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import Agent
from cachewarden.messages import Mode
from cachewarden.policy.constitution import Constitution, load_constitution
from cachewarden.ports import LookupLedger, Mailbox
from cachewarden.settings import CacheOptimizerSettings
from cachewarden.shell import AgentShell, Ports
from cluster.audit import CheckpointMailbox, load_checkpoint
from cluster.clock import SystemClock
from cluster.peers import has_envoy, make_envoy, make_peers, require_peer_urls
from cluster.runtime_env import ROOT
from coordination.cycle import Coordinator
from coordination.envoy import ENVOY
from coordination.redis_blackboard import RedisBlackboard
from coordination.redis_journal import RedisJournal
from coordination.redis_keep_warm import RedisKeepWarm
from coordination.redis_leases import RedisLeaseStore
from coordination.redis_lookup_ledger import RedisLookupLedger
from coordination.redis_target import RedisTarget, TargetLimits

__all__ = [
    "ALL_AGENTS",
    "Plan",
    "agents_of",
    "build_agent",
    "build_shell",
    "checkpoint_path",
    "hash_secret",
    "make_blackboard",
    "make_journal",
    "make_plan",
    "require_redis_url",
    "without_password",
]

ALL_AGENTS = ("auditor", "coordinator", "collector", "planner", "validator", "consensus", "actuator")
"""In the order in which they are started: memory first, whoever writes to caches last."""


def agents_of(plan: Plan) -> tuple[str, ...]:
    """Return the agents of a deployment: all of ours, the envoy where HTTP peers are configured, and the warmer where a
    fleet file permits that caches are kept warm."""
    warmer = (WARMTH,) if kept_warm(plan.fleet) else ()
    return (*ALL_AGENTS, *warmer, *((ENVOY,) if has_envoy(plan.settings) else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is needed to run cachewarden for one fleet."""

    fleet: Fleet
    settings: CacheOptimizerSettings
    secret: bytes = field(repr=False)
    holder: str = "cachewarden"
    """Name of this deployment in leases; another deployment needs another one."""

    @property
    def journal_url(self) -> str:
        return self.settings.journal_url or self.settings.blackboard_url

    def constitution(self) -> Constitution:
        """Load the constitution; raises ConstitutionError with file and line."""
        return load_constitution(self.settings.constitution_path)


def checkpoint_path(settings: CacheOptimizerSettings) -> Path:
    """Return where the newest proven point of the journal is kept, out of reach of whoever can write to the journal."""
    return Path(settings.state_dir) / "checkpoint.json"


def hash_secret(settings: CacheOptimizerSettings) -> bytes:
    """Return the secret of the key hash, made on the first start and kept in a file that only we can read."""
    if settings.hash_secret:
        return settings.hash_secret.encode()
    path = Path(settings.state_dir) / "hash_secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(32).encode())
        secret = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"the secret of the key hash cannot be kept in `{path}`: {error}, set STATE_DIR or HASH_SECRET"
        ) from None
    if not secret:
        # A crash between making and writing it; hashes without a secret could be guessed back to keys.
        raise SettingsError(f"the secret of the key hash in `{path}` is empty, restore it or remove the file")
    return secret


def require_redis_url(name: str, url: str) -> str:
    """Return `url`; raises SettingsError for one that no client can use. It is not shown, it may hold a password."""
    try:
        parse_url(url)
    except ValueError as error:
        raise SettingsError(f"`{name}` cannot be used: {error}") from None
    return url


def without_password(url: str | None) -> str | None:
    """Return a URL as it may be shown: without user, password and query, which may hold a password as well."""
    if url is None:
        return None
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


def make_plan(fleet: Fleet, settings: CacheOptimizerSettings) -> Plan:
    """Return the plan of one deployment, its paths made absolute, and everything that an agent loads proven to load.

    Its holder is a writer of its own: two deployments may live on one host, even in one process. Raises
    ConstitutionError and SettingsError here, with the way out, and not in an actor's log.
    """
    path = settings.constitution_path
    found = path if path.is_absolute() or path.exists() else ROOT / path
    absolute = settings.model_copy(
        update={"constitution_path": found.resolve(), "state_dir": Path(settings.state_dir).resolve()}
    )
    holder = f"{fleet.name}-{os.uname().nodename}-{secrets.token_hex(4)}"
    plan = Plan(fleet=fleet, settings=absolute, secret=hash_secret(absolute), holder=holder)
    plan.constitution()
    load_checkpoint(checkpoint_path(absolute))
    require_redis_url("blackboard_url", absolute.blackboard_url)
    require_peer_urls(absolute)
    if absolute.journal_url is not None:
        require_redis_url("journal_url", absolute.journal_url)
    for service in fleet.services:
        if service.mode is not Mode.OFF:
            service_password(service)
    return plan


def make_journal(plan: Plan) -> RedisJournal:
    """Return a journal of its own connections."""
    return RedisJournal(plan.journal_url, prefix=plan.settings.key_prefix, timeout_s=plan.settings.redis_timeout)


def make_blackboard(settings: CacheOptimizerSettings) -> RedisBlackboard:
    """Return the blackboard of the settings, of its own connections."""
    return RedisBlackboard(
        settings.blackboard_url,
        prefix=settings.blackboard_key_prefix,
        timeout_s=settings.redis_timeout,
        kept_ms=settings.blackboard_kept_ms,
        core_indexes=settings.blackboard_core_indexes,
        life_ttl_ms=3_000 * settings.agent_heartbeat_interval,
    )


def service_password(service: Service) -> str | None:
    """Return the password that the fleet file names; raises SettingsError when the environment lacks it."""
    if service.password_env is None:
        return None
    password = os.environ.get(service.password_env)
    if password is None:
        raise SettingsError(
            f"service `{service.name}` takes its password from the environment variable `{service.password_env}`, "
            "which is not set"
        )
    return password


def has_password(service: Service) -> bool:
    """Whether the password that the fleet file names is there, or none is needed."""
    return service.password_env is None or service.password_env in os.environ


def make_lookup_ledger(plan: Plan, name: str) -> RedisLookupLedger:
    """Return what the adapters of agent `name` tell of their lookups by, under a name of this life of this process."""
    adapter = f"{plan.holder}:{name}:{secrets.token_hex(6)}"
    return RedisLookupLedger(plan.journal_url, adapter=adapter, key_prefix=plan.settings.key_prefix)


def make_targets(plan: Plan, lookups: LookupLedger) -> dict[str, RedisTarget]:
    """Return an adapter for every service that is not switched off; `lookups` stays the caller's to close."""
    return {
        service.name: RedisTarget(
            service,
            hash_secret=plan.secret,
            clock=SystemClock(),
            password=service_password(service),
            limits=TargetLimits(
                timeout_s=plan.settings.redis_timeout, probe_server_share=plan.settings.probe_server_share
            ),
            fence_key=f"{plan.settings.key_prefix}:fence",
            lookups=lookups,
        )
        for service in plan.fleet.services
        # Also of one that is off: its mode may be changed while we run.
        if service.mode is not Mode.OFF or has_password(service)
    }


def make_keep_warm(plan: Plan, lookups: LookupLedger | None) -> RedisKeepWarm:
    """Return what keeps the caches of the fleet warm where their file permits it."""
    names = [n for n in kept_warm(plan.fleet) if has_password(plan.fleet.service(n))]
    return RedisKeepWarm(
        plan.fleet,
        names,
        lookups=lookups,
        draw=random.SystemRandom().random,
        passwords={name: service_password(plan.fleet.service(name)) for name in names},
        reserved=(f"{plan.settings.key_prefix}:", f"{plan.settings.blackboard_key_prefix}:"),
        timeout_s=plan.settings.redis_timeout,
        server_share=plan.settings.probe_server_share,
    )


def build_agent(plan: Plan, name: str) -> Agent:
    """Return the plain agent of that name; raises KeyError for an unknown one."""
    settings, fleet = plan.settings, plan.fleet
    builders: Mapping[str, Callable[[], Agent]] = {
        "collector": lambda: Collector(fleet, settings),
        "planner": lambda: Planner(fleet, settings),
        "validator": lambda: Validator(plan.constitution(), fleet, settings),
        "consensus": lambda: Consensus(fleet, settings),
        "actuator": lambda: Actuator(
            # Unique for this life: what an earlier one may still have on its way must not pass for ours.
            holder=f"{plan.holder}:{secrets.token_hex(4)}",
            settings=settings,
            fleet=fleet,
        ),
        "auditor": lambda: Auditor(
            checkpoint=load_checkpoint(checkpoint_path(settings)), idle_factor=settings.idle_factor
        ),
        "coordinator": lambda: Coordinator(fleet, settings, life=f"{plan.holder}:{secrets.token_hex(4)}"),
        WARMTH: lambda: Warmth(fleet),
        ENVOY: lambda: make_envoy(settings),
    }
    return builders[name]()


def build_shell(plan: Plan, name: str, mailbox: Mailbox) -> AgentShell:
    """Return the shell of one agent with the ports that it may use; call inside the loop that will run it."""
    journal = make_journal(plan) if name in ("actuator", "coordinator", "auditor", "consensus", WARMTH, ENVOY) else None
    peers = make_peers(plan.settings, name, plan.journal_url, plan.holder)
    blackboard = make_blackboard(plan.settings) if name == "coordinator" else None
    if name == "auditor":
        # What it reports as proven is kept in a file that no writer of the journal can reach.
        mailbox = CheckpointMailbox(mailbox, checkpoint_path(plan.settings))
    leases = (
        RedisLeaseStore(plan.journal_url, key_prefix=plan.settings.key_prefix, timeout_s=plan.settings.redis_timeout)
        if name == "actuator"
        else None
    )
    lookups = make_lookup_ledger(plan, name) if name in ("collector", "actuator", WARMTH) else None
    targets = {} if lookups is None or name == WARMTH else make_targets(plan, lookups)
    keep_warm = make_keep_warm(plan, lookups) if name == WARMTH else None
    closers: list[Callable[[], Awaitable[None]]] = [t.close for t in targets.values()]
    closers += [port.close for port in (journal, blackboard, leases, lookups, peers, keep_warm) if port is not None]

    async def close() -> None:
        # Side by side, so that one that fails leaves no other open.
        await asyncio.gather(*(closer() for closer in closers), return_exceptions=True)

    ports = Ports(
        clock=SystemClock(),
        mailbox=mailbox,
        journal=journal,
        leases=leases,
        targets=targets,
        blackboard=blackboard,
        peers=peers,
        keep_warm=keep_warm,
        draw=random.SystemRandom().random,
        close=close,
    )
    return AgentShell(build_agent(plan, name), ports)
