"""What the whole of it costs when there is nothing to do: processor time of every process, by what it is for.

Run from the repository root: `python -m benchmarks.idle [--seconds N] [--settle N] [--no-ray]`. Two caches that nobody
asks for anything are looked after by `python -m cluster run` as a user starts it, with the settings as they are by
default. The servers themselves are not counted. Loops of an idle fleet slow down step by step, so the time to settle is
part of the question.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.decision_latency import MARK, cpu_between, cpu_by_process, free_port, machine
from cluster.demo.fleet import blackboard_options
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all

_CACHE_BYTES = 64 << 20
_END_S = 60.0
_SHOWN = 12


def _password_variable(cache: EmbeddedServer) -> str:
    return f"{cache.options.name.upper()}_PASSWORD"


def _fleet_file(folder: Path, caches: list[EmbeddedServer]) -> Path:
    services = [
        {
            "name": cache.options.name,
            "url": f"redis://127.0.0.1:{cache.port}/0",
            "password_env": _password_variable(cache),
            "minimum_memory_bytes": _CACHE_BYTES // 8,
        }
        for cache in caches
    ]
    path = folder / "fleet.yaml"
    # JSON is YAML.
    path.write_text(json.dumps({"name": "idle", "total_memory_bytes": 2 * _CACHE_BYTES, "services": services}))
    return path


def measure(seconds: float, settle_s: float, *, ray: bool) -> dict[str, float]:
    """Return the percent of a core that each kind of process takes; RuntimeError with what the run said if it ends."""
    mark = secrets.token_hex(8)
    with ServerHome() as home:
        options = [
            ServerOptions(name=name, maxmemory_bytes=_CACHE_BYTES, eviction_policy="allkeys-lru")
            for name in ("one", "two")
        ]
        caches = [EmbeddedServer(one, home) for one in options]
        blackboard = EmbeddedServer(blackboard_options(), home)
        start_all([*caches, blackboard])
        said = home.directory / "said"
        command = [sys.executable, "-m", "cluster", "run", "--fleet", str(_fleet_file(home.directory, caches))]
        environment = os.environ | {
            MARK: mark,
            "BLACKBOARD_URL": blackboard.url,
            "STATE_DIR": str(home.directory / "state"),
            **{_password_variable(cache): cache.password for cache in caches},
        }
        with said.open("wb") as output:
            run = subprocess.Popen(
                [*command, "--port", str(free_port()), *([] if ray else ["--no-ray"])],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            time.sleep(settle_s)
            before, began_s = cpu_by_process(mark), time.monotonic()
            time.sleep(seconds)
            after, took_s = cpu_by_process(mark), time.monotonic() - began_s
            ended = f" and ended by itself with {run.returncode}" if run.poll() is not None else ""
            if ended or "cycle" not in said.read_text():
                raise RuntimeError(f"the run looked at nothing{ended}: {said.read_text()[-2_000:]}")
        finally:
            run.send_signal(signal.SIGINT)
            run.wait(_END_S)
    return {name: 100.0 * used_s / took_s for name, used_s in cpu_between(before, after).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="processor time of an idle deployment")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the measurement")
    parser.add_argument("--settle", type=float, default=120.0, help="seconds before it")
    parser.add_argument("--no-ray", action="store_true", help="all agents in one process")
    given = parser.parse_args()
    print(machine())
    shares = measure(given.seconds, given.settle, ray=not given.no_ray)
    print(f"idle, two caches without traffic: {sum(shares.values()):.1f} % of a core")
    for name, share in sorted(shares.items(), key=lambda item: -item[1])[:_SHOWN]:
        print(f"  {share:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
