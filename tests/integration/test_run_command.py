"""`python -m cluster run` as its users start it: what it prints, how it ends, and that it leaves nothing behind.

Everything that a run starts inherits a mark in its environment, by which it is found wherever it has gone.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.integration.world import ROOT, start_time

pytestmark = [pytest.mark.integration, pytest.mark.ray, pytest.mark.timeout(150)]
_MARK = "CACHEWARDEN_TEST_MARK"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Run:
    """One run of the command line with a folder for temporary files of its own."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None, **environment: str) -> None:
        self.port = free_port() if port is None else port
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.mark = secrets.token_hex(8)
        self.output = folder / f"output-{self.mark}"
        own = {_MARK: self.mark, "TMPDIR": str(self.temporary), "STATE_DIR": str(folder / "state"), **environment}
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cluster", "run", "--no-ray", "--port", str(self.port), *arguments],
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def until_up(self, timeout_s: float = 60.0) -> None:
        """Wait until the API answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=2).status_code in (200, 503):
                    return
            except httpx.HTTPError:
                pass
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.1)

    def alive(self) -> list[str]:
        """Return the command lines of all processes that carry the mark."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or start_time(int(entry.name)) is None:
                continue
            try:
                if f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found

    def port_is_free(self) -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError:
                return False
        return True

    def assert_nothing_left(self, within_s: float = 0.0) -> None:
        """Assert that no process, no port and no temporary file is left, at the latest after `within_s`."""
        deadline = time.monotonic() + within_s
        while (left := self.alive()) or list(self.temporary.iterdir()):
            assert time.monotonic() < deadline, f"left behind: {left}, {list(self.temporary.iterdir())}"
            time.sleep(0.05)
        assert self.port_is_free()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Start runs that end with the test."""
    runs: list[Run] = []

    def make(*arguments: str, port: int | None = None, **environment: str) -> Run:
        runs.append(Run(tmp_path, *arguments, port=port, **environment))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def test_a_run_that_ends_by_itself_says_where_everything_is_and_leaves_nothing(start):
    run = start("--minutes", "0.5")
    assert run.process.wait(timeout=120) == 0, run.text()
    text = run.text().replace("\n", "")
    assert f"http://127.0.0.1:{run.port}" in text
    assert "admin-token" in text
    assert "is intact" in text
    assert "Traceback" not in text
    run.assert_nothing_left()


def test_sigterm_in_the_middle_ends_a_run_in_good_order(start):
    run = start()
    run.until_up()
    assert run.alive()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=30) == 0, run.text()
    assert "Traceback" not in run.text()
    run.assert_nothing_left()


def test_after_kill_nine_nothing_is_left_within_five_seconds(start):
    run = start()
    run.until_up()
    run.process.kill()
    run.process.wait()
    run.assert_nothing_left(within_s=5.0)


def test_a_broken_fleet_file_is_one_line_with_file_and_line_number_and_exit_code_two(start, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: mine\nservices:\n  - name: shop\n    url: redis://127.0.0.1:1\n    mode: sometimes\n")
    run = start("--fleet", str(path))
    assert run.process.wait(timeout=60) == 2, run.text()
    lines = [line for line in run.text().splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert "broken.yaml:5" in lines[0]
    assert "mode" in lines[0]
    run.assert_nothing_left(within_s=2.0)


@pytest.mark.parametrize("own_fleet", [False, True], ids=["demo", "own-fleet"])
def test_a_port_that_is_taken_is_said_before_anything_is_begun(start, tmp_path, own_fleet):
    path = tmp_path / "fleet.yaml"
    path.write_text("name: mine\nservices:\n  - name: shop\n    url: redis://127.0.0.1:1\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = start(*(("--fleet", str(path)) if own_fleet else ()), port=taken.getsockname()[1])
        assert run.process.wait(timeout=90) == 2, run.text()
    assert str(run.port) in run.text()
    assert "Traceback" not in run.text()
    run.assert_nothing_left(within_s=2.0)
