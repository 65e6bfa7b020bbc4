"""Ends processes and removes directories once the process that owned them is gone, however it went.

Stands alone (no import of ours) and runs as its own process. It reads lines from standard input, which its owner
holds open: `watch PID START`, `forget PID`, `dir PATH`. When the pipe closes, it ends what is still watched, removes
the directories, and exits.

INVARIANT: it signals no process whose start time differs from the one it was told, so a reused pid is safe.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

__all__ = ["main", "start_time"]

_GRACE_S = 2.0
_POLL_S = 0.02


def start_time(pid: int) -> str | None:
    """Return what tells this process from a later one with the same pid; None if gone, `-` where /proc is missing."""
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "-"
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name may hold spaces and brackets; state and start time are fields 1 and 20 after its last bracket.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _signal(pid: int, started: str, number: int) -> bool:
    """Send the signal if it is still the same process; say whether it was."""
    if start_time(pid) != started:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _end(watched: dict[int, str]) -> None:
    for pid, started in watched.items():
        _signal(pid, started, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and any(start_time(p) == s for p, s in watched.items()):
        time.sleep(_POLL_S)
    for pid, started in watched.items():
        _signal(pid, started, signal.SIGKILL)


def main() -> None:
    """Read orders until the pipe closes, then clean up."""
    # Ctrl-C and hang-ups of the terminal are the owner's business; ours begins when the owner is gone.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, str] = {}
    directories: list[str] = []
    for line in sys.stdin:
        order, _, rest = line.rstrip("\n").partition(" ")
        if order == "watch":
            pid, _, started = rest.partition(" ")
            watched[int(pid)] = started
        elif order == "forget":
            watched.pop(int(rest), None)
        elif order == "dir":
            directories.append(rest)
    _end(watched)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
