"""How long a decision takes over HTTP, with everything running: P50, P99 and P99.9, per step and end to end.

Run from the repository root: `python -m benchmarks.decision_latency [--seconds N] [--no-ray]`. One run starts embedded
caches with traffic, a journal, all agents, and the API on Ray Serve, and puts load on it from a process of its own: a
no-op through the same ingress, the full decision in a closed loop, and in an open loop at several rates. Figures hold
for this machine and this hour; the ratio to the no-op is what machines have in common.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import platform
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.http_load import Outcome
from cachewarden.messages import Mode
from cluster.ingress import prepare
from cluster.wiring import Plan, make_journal, make_plan
from serve.security import ensure_first_token
from tests.facade_world import SERVICES, embedded_world

ROOT = Path(__file__).resolve().parents[1]
RATES = (50.0, 200.0, 500.0, 1_000.0)
MARK = "CACHEWARDEN_BENCH_MARK"
_OPTIMIZE = "/api/v1/cache/optimize"
_PY_SPY = str(Path(sys.executable).with_name("py-spy"))
_BODY = json.dumps({"service_name": SERVICES[0]})


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` (0..1) of the values do not exceed; not a number where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def name_of(command: str) -> str:
    """Return what a process is for, from its command line; empty for load and for the caches that are looked after."""
    if "http_load" in command or "demo.driver" in command or "demo.player" in command or "demo.reaper" in command:
        return ""
    if "valkey-server" in command or "redis-server" in command:
        return "blackboard and journal" if _journal_port and command.rstrip().endswith(f":{_journal_port}") else ""
    for word in (
        "gcs_server",
        "raylet/raylet",
        "dashboard/agent",
        "runtime_env/agent",
        "log_monitor",
        "haproxy",
        "monitor",
    ):
        if word in command:
            return word
    return command.partition(" ")[0].partition(".")[0] if command.startswith("ray::") else command[:60]


_journal_port = 0


def cpu_by_process(mark: str) -> dict[tuple[int, str], tuple[str, float]]:
    """Return what each process that carries the mark is for and its processor seconds so far, by its id and start.

    Ray renames its workers with what they do, so a name alone would take one process for two.
    """
    used: dict[tuple[int, str], tuple[str, float]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes():
                continue
            name = name_of((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if name:
            ticks = int(fields[11]) + int(fields[12])
            used[int(entry.name), fields[19]] = name, ticks / os.sysconf("SC_CLK_TCK")
    return used


def cpu_between(
    before: dict[tuple[int, str], tuple[str, float]], after: dict[tuple[int, str], tuple[str, float]]
) -> dict[str, float]:
    """Return the processor seconds between two readings by what the processes are for now."""
    spent: dict[str, float] = {}
    for process, (name, used_s) in after.items():
        started_s = before[process][1] if process in before else 0.0
        spent[name] = spent.get(name, 0.0) + used_s - started_s
    return spent


def machine() -> str:
    """Return what the figures hold for."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} cores, {model}; {platform.system()} {platform.release()}; load before: {load}"


async def put_load(url: str, token: Path, seconds: float, **how: float) -> Outcome:
    """Run the generator and return what it saw."""
    options = [item for name, value in how.items() for item in (f"--{name.replace('_', '-')}", f"{value:g}")]
    command = [sys.executable, "-m", "benchmarks.http_load", url, "--body", _BODY, "--seconds", f"{seconds:g}"]
    process = await asyncio.create_subprocess_exec(
        *command, *options, "--token-file", str(token), cwd=ROOT, stdout=subprocess.PIPE
    )
    told, _ = await process.communicate()
    return Outcome(**json.loads(told))


class Api:
    """The API that is up, and a no-op beside it."""

    def __init__(
        self, url: str, noop_url: str, plan: Plan, token: Path, ingress: str, deploy: Callable[[str], None]
    ) -> None:
        self.url, self.noop_url, self.plan, self.token, self.ingress = url, noop_url, plan, token, ingress
        self.deploy = deploy
        """Puts a release into service, in the place of the one before."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def api_up(replicas: int) -> AsyncIterator[Api]:
    """Start caches, traffic, agents and the API; everything ends with the block."""
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(
            embedded_world(
                SERVICES,
                mode=Mode.ADVISE,
                rate_per_s=150.0,
                cycle_interval_ms=5_000,
                capture_ms=0,
                requests_per_s_per_token=1e6,
            )
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b")))
        ingress = prepare(os.environ, folder / "h")
        from ray import serve as ray_serve

        from cluster import ray_runtime
        from cluster.run import make_app
        from serve import deployments

        plan = make_plan(world.fleet, world.settings)
        globals()["_journal_port"] = world.blackboard.port
        _, token = ensure_first_token(plan.settings.state_dir)
        stack.callback(ray_runtime.stop_ray)
        await asyncio.to_thread(ray_runtime.start_ray, temporary=folder / "r")
        agents = ray_runtime.RayAgents(plan)
        stack.callback(agents.stop)
        await asyncio.to_thread(agents.start)
        port = free_port()
        stack.callback(deployments.stop_api)
        build = functools.partial(make_app, plan, ray_runtime.RayMailbox, ids_by_server=True)
        deploy = functools.partial(
            deployments.serve_api, build, host="127.0.0.1", port=port, scale=deployments.Scale(replicas)
        )
        await asyncio.to_thread(deploy)

        def noop() -> Any:
            async def answer(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] == "lifespan":
                    for stage in ("startup", "shutdown"):
                        await receive()
                        await send({"type": f"lifespan.{stage}.complete"})
                    return
                await receive()
                await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
                await send({"type": "http.response.body", "body": b"{}"})

            return answer

        idle = ray_serve.deployment(
            ray_serve.ingress(noop)(), name="noop", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=20_000
        )
        await asyncio.to_thread(
            ray_serve.run, idle.bind(), name="noop", route_prefix="/noop", logging_config={"enable_access_log": False}
        )
        base = f"http://127.0.0.1:{port}"
        yield Api(
            base + _OPTIMIZE, base + "/noop", plan, token, ingress.reason, lambda release: deploy(release=release)
        )


async def until_judged(api: Api, patience_s: float = 60.0) -> None:
    """Wait until a plan stands, so that every request has the constitution evaluated."""
    import httpx

    end_s = time.monotonic() + patience_s
    headers = {"Authorization": f"Bearer {api.token.read_text().strip()}", "Content-Type": "application/json"}
    async with httpx.AsyncClient(headers=headers) as client:
        while True:
            response = await client.post(api.url, content=_BODY)
            if response.status_code == 200 and response.json()["constitutional_compliance"]["judged"]:
                return
            if time.monotonic() > end_s:
                raise TimeoutError(
                    f"no plan stood within {patience_s:g} s: {response.json().get('reason', response.text[:300])}"
                )
            await asyncio.sleep(0.2)


async def unaudited(api: Api, answered: Sequence[str]) -> tuple[int, int]:
    """Return how many answers lack their record, and how many decisions were recorded that nobody was answered."""
    journal = make_journal(api.plan)
    try:
        recorded = {r.subject_id for r in await journal.read_back(("request_decided",))}
    finally:
        await journal.close()
    return len(set(answered) - recorded), len(recorded - set(answered))


def _row(table: Table, name: str, outcome: Outcome, base_p99_ms: float, cpu_s: float) -> None:
    cells = [f"{quantile(outcome.latencies_ms, share):.2f}" for share in (0.5, 0.99, 0.999)]
    inside = outcome.steps_ms
    ratio = quantile(outcome.latencies_ms, 0.99) / base_p99_ms if base_p99_ms == base_p99_ms else float("nan")
    table.add_row(
        name,
        f"{len(outcome.latencies_ms) / outcome.took_s:,.0f}",
        *cells,
        f"{ratio:.2f}",
        f"{quantile(inside.get('decision_ms', ()), 0.99):.2f}",
        f"{quantile(inside.get('optimization_duration_ms', ()), 0.99):.2f}",
        f"{100 * cpu_s / outcome.took_s:.0f} %",
        " ".join(f"{status}:{count}" for status, count in sorted(outcome.statuses.items())),
    )


def _steps(outcome: Outcome) -> str:
    parts = [
        f"{step.removesuffix('_ms')} {quantile(values, 0.5) * 1000:.0f}/{quantile(values, 0.99) * 1000:.0f}"
        for step, values in outcome.steps_ms.items()
    ]
    return "steps in microseconds, P50/P99: " + ", ".join(parts)


@contextlib.asynccontextmanager
async def profiled(folder: Path | None, mark: str, seconds: float) -> AsyncIterator[list[Path]]:
    """Record flame graphs of all replicas meanwhile; yields the files that they go to, none without a folder."""
    files: list[Path] = []
    running = []
    for (pid, _), (name, _) in cpu_by_process(mark).items() if folder is not None else ():
        if "replica" in name.lower() and "noop" not in name.lower():
            files.append(Path(folder or "") / f"replica-{pid}.svg")
            options = ("record", "--pid", str(pid), "--duration", f"{seconds:.0f}", "--output", str(files[-1]))
            running.append(await asyncio.create_subprocess_exec(_PY_SPY, *options, stdout=asyncio.subprocess.DEVNULL))
    yield files
    for process in running:
        await process.wait()


async def measure(wanted: argparse.Namespace, console: Console) -> None:
    """Put all loads on and print what came of them; `wanted` as `main` reads it."""
    seconds, replicas, connections = wanted.seconds, wanted.replicas, wanted.connections
    mark = secrets.token_hex(8)
    os.environ[MARK] = mark
    console.print(machine())
    async with api_up(replicas) as api:
        console.print(f"ingress: {api.ingress}; {replicas} replica(s); load generator on the same machine")
        await until_judged(api)
        answered: list[str] = []
        idle_s = max(5.0, min(20.0, seconds))
        before = cpu_by_process(mark)
        await asyncio.sleep(idle_s)
        after = cpu_by_process(mark)
        shares = {name: 100 * used_s / idle_s for name, used_s in cpu_between(before, after).items()}
        console.print(
            f"idle, cycles of 5 s on {len(SERVICES)} caches with traffic: {sum(shares.values()):.1f} % of a core"
        )
        for name, share in sorted(shares.items(), key=lambda item: -item[1])[:12]:
            console.print(f"  {share:5.1f} %  {name}")
        table = Table(title=f"{seconds:g} s each; times in ms; latency from when each request was due")
        for column in (
            "what",
            "per s",
            "P50",
            "P99",
            "P99.9",
            "/ no-op P99",
            "decision P99",
            "in replica P99",
            "CPU",
            "answers",
        ):
            table.add_column(column, justify="left" if column in ("what", "answers") else "right")
        told: list[str] = []
        for per_s in (*wanted.rates, 0.0):
            how: dict[str, float] = {"per_s": per_s} if per_s else {"connections": connections}
            label = f"open loop {per_s:g}/s" if per_s else f"closed loop, {connections} connections"
            bases: list[float] = []
            for kind, url in (("no-op", api.noop_url), ("decision", api.url)):
                await put_load(url, api.token, 1.0, **how)
                before = cpu_by_process(mark)
                folder = wanted.profile if kind == "decision" and not per_s else None
                async with profiled(folder, mark, seconds) as graphs:
                    outcome = await put_load(url, api.token, seconds, **how)
                told += [f"profile of the closed loop: {path}" for path in graphs if path.exists()]
                spent = cpu_between(before, cpu_by_process(mark))
                used_s = sum(spent.values())
                _row(table, f"{kind}, {label}", outcome, bases[0] if bases else float("nan"), used_s)
                bases.append(quantile(outcome.latencies_ms, 0.99))
                answered += outcome.decision_ids
                if kind == "decision":
                    busiest = sorted(spent.items(), key=lambda item: -item[1])[:6]
                    shown = ", ".join(f"{name} {100 * value / outcome.took_s:.0f} %" for name, value in busiest)
                    told.append(f"{label}: {shown}")
                if outcome.steps_ms:
                    told.append(f"{label}: {_steps(outcome)}")
        console.print(table)
        for line in told:
            console.print(line, soft_wrap=True)
        lacking, surplus = await unaudited(api, answered)
        console.print(
            f"{len(answered)} answers checked: {lacking} lack their record ({surplus} more records, of warm-ups)"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="measure decisions over HTTP")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rates", type=float, nargs="*", default=list(RATES), help="of the open loops, per second")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--connections", type=int, default=32, help="of the closed loop")
    parser.add_argument("--profile", type=Path, help="folder for flame graphs of the replicas in the closed loop")
    arguments = parser.parse_args()
    if arguments.profile is not None:
        arguments.profile.mkdir(parents=True, exist_ok=True)
    asyncio.run(measure(arguments, Console(width=170)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
