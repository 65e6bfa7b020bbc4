"""`python -m cluster run`: everything up, a live view, everything down.

Whatever is started is put on one stack and taken down in reverse, whichever way the run ends. Without a fleet file
it is the demo: five
embedded caches, their untouched twins as control, and the same load on both. INVARIANT: nothing that was started
outlives the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console
from rich.live import Live

from cachewarden.errors import OperatingError, SettingsError
from cachewarden.fleet import load_fleet
from cachewarden.settings import CacheOptimizerSettings, load_settings
from cluster.audit import verify_journal
from cluster.backend import AgentBackend, Runtime
from cluster.clock import SystemClock
from cluster.demo import fleet as demo
from cluster.demo.driver import start_driver
from cluster.demo.servers import EmbeddedServer, ServerHome
from cluster.demo.stats import read_last_stats
from cluster.ingress import prepare
from cluster.live import LiveView, Place, scoreboard
from cluster.local import LocalRuntime
from cluster.wiring import Plan, checkpoint_path, make_journal, make_plan
from serve.api import create_app
from serve.security import TokenStore, ensure_first_token

__all__ = ["RunOptions", "make_app", "run"]

DEMO_SETTINGS: dict[str, Any] = {
    "cycle_interval_ms": 5_000,
    "observation_window_ms": 15_000,
    "cool_down_ms": 10_000,
    "capture_ms": 45_000,
    "capture_pause_ms": 60_000,
    "changes_per_hour": 60,
}
"""A demo is watched for minutes, production for weeks: faster cycles, shorter windows. Overridden by the
environment and `.env`."""

_LINE_EVERY_S = 10.0
_VIEW_EVERY_S = 1.0
_STOP_TIMEOUT_S = 10.0
_PREFILL_TIMEOUT_S = 120.0
_RAY_FOLDER_CHARS_MAX = 107 - len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""A Unix socket's path has at most 107 bytes on Linux."""
_TOKENS_BELIEVED_S = 0.25
"""How long a revoked token may still be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line asked for. minutes: end by itself after so long; None = until Ctrl-C."""

    fleet_path: Path | None = None
    seed: int = 42
    minutes: float | None = None
    use_ray: bool = True
    port: int | None = None


class _Stopped(Exception):
    """Told to stop before everything was up."""


@dataclass(frozen=True, slots=True)
class _World:
    """What is up before any agent is. `driver`: the demo's load, None with the user's own fleet."""

    plan: Plan
    driver: subprocess.Popen[bytes] | None
    stats_path: Path | None
    journal: str
    temporary: Path


def make_app(plan: Plan, runtime: Callable[[], Runtime], *, ids_by_server: bool = False) -> Any:
    """Return the ASGI application of one replica; called where it will be served. `ids_by_server` as `create_app`."""
    backend = AgentBackend(plan, runtime())
    tokens = TokenStore(plan.settings.state_dir, believed_s=_TOKENS_BELIEVED_S)
    return create_app(backend, tokens, ids_by_server=ids_by_server)


async def run(options: RunOptions, console: Console) -> int:
    """Run until told to stop; returns the exit code."""
    stop = asyncio.Event()
    _listen(stop)
    try:
        await _run(options, stop, console)
    except _Stopped:
        console.print("stopped before everything was up")
    return 0


def _listen(stop: asyncio.Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


def _go_on(stop: asyncio.Event) -> None:
    """Raise _Stopped once told to stop. Asked between the steps of the start: one that runs in a thread is waited for,
    since what it has begun to start could not be taken down otherwise."""
    if stop.is_set():
        raise _Stopped


async def _run(options: RunOptions, stop: asyncio.Event, console: Console) -> None:
    async with contextlib.AsyncExitStack() as stack:
        world = await _start_world(options, stop, stack, console)
        created, token_path = ensure_first_token(world.plan.settings.state_dir)
        settings = world.plan.settings
        url = f"http://{settings.http_host}:{settings.http_port}"
        console.print(f"token {'made and kept' if created else 'kept'} in {token_path}")
        runtime = await _start_agents(options, world, stop, stack, console)
        _listen(stop)
        console.print(f"API at {url} (described at {url}/openapi.json); Ctrl-C ends everything")
        is_demo = world.stats_path is not None
        view = LiveView(
            place=Place(url=url, token_path=str(token_path), journal=world.journal),
            services=world.plan.fleet.names,
            managed=demo.MANAGED if is_demo else "",
            control=demo.CONTROL if is_demo else "",
        )
        await _show(view, world, runtime, options, stop, console)
        await _farewell(view, world, console)
        console.print("stopping")


async def _start_world(
    options: RunOptions, stop: asyncio.Event, stack: contextlib.AsyncExitStack, console: Console
) -> _World:
    home = ServerHome()
    stack.callback(home.close)
    overrides: dict[str, Any] = {"http_port": options.port} if options.port else {}
    wanted = load_settings(**overrides)
    _require_free_port(wanted.http_host, wanted.http_port)
    if options.fleet_path is not None:
        fleet = load_fleet(options.fleet_path)
        settings = load_settings(fleet_path=options.fleet_path, **overrides)
        settings, journal = _blackboard(settings, home, stack, console)
        return _World(make_plan(fleet, settings), None, None, journal, home.directory)
    console.print("starting five caches, five untouched twins and the blackboard's server")
    servers = await asyncio.to_thread(demo.DemoServers.start, home)
    _go_on(stop)
    fleet = demo.demo_fleet(servers.urls[demo.MANAGED])
    defaults = {name: value for name, value in DEMO_SETTINGS.items() if name not in wanted.model_fields_set}
    settings = load_settings(
        **defaults,
        blackboard_url=servers.blackboard.url,
        journal_url=servers.blackboard.url,
        state_dir=home.directory / "state",
        **overrides,
    )
    stats_path = home.directory / "stats.jsonl"
    driver = start_driver(demo.driver_plan(servers.urls, options.seed, str(stats_path)), home)
    stack.callback(_end_process, driver)
    console.print(f"load with seed {options.seed} on both fleets: first the caches' past, then open-loop arrivals")
    await _until_loaded(stats_path, driver, stop)
    journal = f"embedded, port {servers.blackboard.port}"
    return _World(make_plan(fleet, settings), driver, stats_path, journal, home.directory)


def _require_free_port(host: str, port: int) -> None:
    """Raise SettingsError if the API could not listen there: said before anything is started, and in one line."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = error.strerror or str(error)
        raise SettingsError(
            f"the API cannot listen on `{host}` port `{port}`: {why.lower()}, stop what listens there or give another "
            "with --port"
        ) from None


async def _until_loaded(stats_path: Path, driver: subprocess.Popen[bytes], stop: asyncio.Event) -> None:
    """Wait until the caches hold what they would hold in the middle of their lives."""
    try:
        async with asyncio.timeout(_PREFILL_TIMEOUT_S):
            while True:
                _go_on(stop)
                stats = read_last_stats(stats_path)
                if stats is not None and stats.phase == "load":
                    return
                if driver.poll() is not None:
                    # The folder goes with the run, so what the driver said has to be told now.
                    said = (stats_path.parent / "driver.log").read_text(errors="replace").strip().rpartition("\n")[2]
                    raise OperatingError(f"the load driver ended with code {driver.returncode}: {said[:300]}")
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise OperatingError(
            f"the caches were not filled within {_PREFILL_TIMEOUT_S:g} s, is the machine overloaded?"
        ) from None


def _blackboard(
    settings: CacheOptimizerSettings, home: ServerHome, stack: contextlib.AsyncExitStack, console: Console
) -> tuple[CacheOptimizerSettings, str]:
    """Return settings with a blackboard: the operator's if one is named, else an embedded one whose files stay in
    state_dir."""
    if "blackboard_url" in settings.model_fields_set:
        return settings, "at JOURNAL_URL" if settings.journal_url else "on the blackboard's server"
    directory = Path(settings.state_dir).resolve() / "blackboard"
    server = EmbeddedServer(demo.blackboard_options(), home, directory=directory)
    try:
        server.start()
    except OSError as error:
        raise SettingsError(f"the blackboard cannot be kept in `{directory}`: {error}, set STATE_DIR") from None
    stack.callback(server.stop)
    what = "journal and blackboard are" if settings.journal_url is None else "the blackboard is"
    console.print(f"BLACKBOARD_URL is not set: {what} kept by an embedded server in {directory}")
    if settings.journal_url is not None:
        return settings.model_copy(update={"blackboard_url": server.url}), "at JOURNAL_URL"
    changed = settings.model_copy(update={"blackboard_url": server.url, "journal_url": server.url})
    return changed, f"embedded, files in {directory}"


async def _start_agents(
    options: RunOptions, world: _World, stop: asyncio.Event, stack: contextlib.AsyncExitStack, console: Console
) -> Runtime:
    settings = world.plan.settings
    if not options.use_ray:
        runtime = await stack.enter_async_context(LocalRuntime(world.plan))
        await stack.enter_async_context(_local_api(world.plan, runtime))
        return runtime
    temporary = world.temporary / "r"
    # Before Ray is imported: Serve reads its settings from the environment when it is.
    # HAProxy's sockets need a folder with a short name of its own.
    sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="cw-", ignore_cleanup_errors=True))
    ingress = prepare(os.environ, Path(sockets))
    from cluster import ray_runtime
    from serve import deployments

    console.print("starting Ray, seven agents as actors, and the API on Ray Serve (some 20 s)")
    console.print(f"ingress: {ingress.reason}")
    if len(str(temporary)) > _RAY_FOLDER_CHARS_MAX:
        raise OperatingError(
            f"`{world.temporary.parent}` is too long for the sockets that Ray makes below it, set TMPDIR to a shorter "
            "folder or use --no-ray"
        )
    temporary.mkdir()
    stack.callback(ray_runtime.stop_ray)
    await asyncio.to_thread(ray_runtime.start_ray, temporary=temporary)
    # Ray puts handlers of its own in place of ours.
    _listen(stop)
    _go_on(stop)
    agents = ray_runtime.RayAgents(world.plan)
    stack.callback(agents.stop)
    await asyncio.to_thread(agents.start)
    _go_on(stop)
    build = functools.partial(make_app, world.plan, ray_runtime.RayMailbox, ids_by_server=True)
    stack.callback(deployments.stop_api)
    await asyncio.to_thread(
        deployments.serve_api,
        build,
        host=settings.http_host,
        port=settings.http_port,
        scale=deployments.Scale(settings.api_replicas, settings.api_replicas_max),
    )
    return ray_runtime.RayMailbox()


@contextlib.asynccontextmanager
async def _local_api(plan: Plan, runtime: Runtime) -> AsyncIterator[None]:
    config = uvicorn.Config(
        make_app(plan, lambda: runtime),
        host=plan.settings.http_host,
        port=plan.settings.http_port,
        log_level="warning",
        access_log=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    # Signals are ours: uvicorn would close the API at once, while the rest still runs.
    server.capture_signals = contextlib.nullcontext  # type: ignore[assignment]
    task = asyncio.create_task(server.serve())
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def _show(
    view: LiveView, world: _World, runtime: Runtime, options: RunOptions, stop: asyncio.Event, console: Console
) -> None:
    loop = asyncio.get_running_loop()
    end = None if options.minutes is None else loop.time() + options.minutes * 60
    live = Live(console=console, refresh_per_second=2, screen=False) if console.is_terminal else None
    next_line = loop.time()
    with live or contextlib.nullcontext():
        while not stop.is_set() and (end is None or loop.time() < end):
            await _refresh(view, world, runtime)
            if live is not None:
                live.update(view.render())
            elif loop.time() >= next_line:
                console.print(view.line(), soft_wrap=True)
                next_line = loop.time() + _LINE_EVERY_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _VIEW_EVERY_S)


async def _refresh(view: LiveView, world: _World, runtime: Runtime) -> None:
    if world.stats_path is not None:
        view.note_stats(read_last_stats(world.stats_path))
    try:
        view.note_state(await runtime.query("coordinator", "state", SystemClock().now_ms()))
        ended = None if world.driver is None else world.driver.poll()
        view.trouble = "" if ended is None else f"the load driver ended with code {ended}, the figures stand still"
    except (OperatingError, RuntimeError) as error:
        view.trouble = f"the coordinator does not answer, it will be restarted: {error}"


async def _farewell(view: LiveView, world: _World, console: Console) -> None:
    if view.state is not None and view.state.executions:
        console.print(scoreboard(view.state.executions))
    console.print(view.line(), soft_wrap=True)
    journal = make_journal(world.plan)
    try:
        outcome = await verify_journal(journal, checkpoint_path(world.plan.settings), clock=SystemClock())
        console.print(outcome.text())
    except OperatingError as error:
        console.print(f"audit: {error}")
    finally:
        await journal.close()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
