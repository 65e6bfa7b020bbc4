"""The API on real Ray Serve: replaced, killed and crowded under load, and what it listens on."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import shutil
import signal
import socket
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from cachewarden.chain import verify
from cachewarden.fleet import Fleet, Service
from cachewarden.messages import Mode
from cachewarden.settings import load_settings
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
from cluster.wiring import Plan, make_journal
from serve.security import create_token
from tests.integration.world import ROOT, start_time, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),
]

OPTIMIZE = "/api/v1/cache/optimize?apply=never"
BODY = {"service_name": "shop"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Plane:
    """Everything that is up. `deploy` begins a rolling update and returns when it is through."""

    plan: Plan
    port: int
    token: str
    deployments: object
    build: object

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, release: str, **scale: float) -> None:
        self.deployments.serve_api(
            self.build,
            host="127.0.0.1",
            port=self.port,
            scale=self.deployments.Scale(**(scale or {"replicas": 2})),
            release=release,
        )

    def client(self, **options) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, **options)


@pytest.fixture(scope="module")
def plane():
    with pytest.MonkeyPatch.context() as patched:
        from cluster.ingress import haproxy_binary, ingress_environment

        folder = Path(tempfile.mkdtemp(prefix="d"))
        # The test may find Ray loaded already, as it would be after another test: the environment has to be there first.
        for name, value in ingress_environment(fast=True, folder=folder / "h", binary=haproxy_binary({})).items():
            patched.setenv(name, value)
        from cluster import ray_runtime
        from cluster.run import make_app
        from serve import deployments

        home = ServerHome()
        cache, blackboard = (
            EmbeddedServer(ServerOptions(name="shop", maxmemory_bytes=8 << 20), home),
            EmbeddedServer(ServerOptions(name="blackboard", append_only=True), home),
        )
        start_all([cache, blackboard])
        settings = load_settings(
            _env_file=None,
            blackboard_url=blackboard.url,
            journal_url=blackboard.url,
            state_dir=folder / "state",
            constitution_path=ROOT / "config" / "constitution.yaml",
            cycle_interval_ms=2_000,
            capture_ms=0,
            state_age_max_ms=15_000,
            requests_per_s_per_token=100_000,
        )
        fleet = Fleet(name="plane", services=(Service(name="shop", url=cache.url, mode=Mode.ADVISE),))
        plan = Plan(fleet=fleet, settings=settings, secret=b"plane", holder="plane")
        token = create_token(settings.state_dir, "caller", ("operate",))
        try:
            ray_runtime.start_ray(temporary=folder / "r")
            agents = ray_runtime.RayAgents(plan, namespace=ray_runtime.NAMESPACE)
            agents.start()
            build = functools.partial(make_app, plan, ray_runtime.RayMailbox, ids_by_server=True)
            one = Plane(plan, free_port(), token, deployments, build)
            one.deploy("1")
            yield one
        finally:
            deployments.stop_api()
            ray_runtime.stop_ray()
            home.close()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Load:
    """Callers that ask one after the other until they are told to stop; `failed` counts what was no answer of ours."""

    plane: Plane
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answered: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    async def caller(self) -> None:
        async with self.plane.client() as client:
            while not self.stop.is_set():
                try:
                    response = await client.post(OPTIMIZE, json=BODY)
                except httpx.HTTPError as error:
                    self.failed[type(error).__name__] += 1
                    continue
                if response.status_code == 200:
                    self.answered.append(response.json()["decision_id"])
                elif response.status_code == 503 and "error" in response.text:
                    self.refused[503] += 1
                    await asyncio.sleep(0.01)
                else:
                    self.failed[str(response.status_code)] += 1

    async def during(self, work, callers: int = 4) -> None:
        """Ask while `work` runs, and a while before and after it."""
        tasks = [asyncio.create_task(self.caller()) for _ in range(callers)]
        try:
            await self.more(50)
            await work
            await self.more(100)
        finally:
            self.stop.set()
            await asyncio.gather(*tasks)

    async def more(self, answers: int) -> None:
        wanted = len(self.answered) + answers
        await until(lambda: len(self.answered) >= wanted, 60, f"{answers} more answers; {self.refused} {self.failed}")


async def recorded(plane: Plane) -> Counter[str]:
    """Return how often each decision is in the journal, which must verify."""
    journal = make_journal(plane.plan)
    try:
        records = await journal.read(0, 1_000_000)
        assert verify(records, expected_head=await journal.head()).ok
        return Counter(r.subject_id for r in records if r.kind == "request_decided")
    finally:
        await journal.close()


def processes(title: str) -> list[int]:
    """Return our own processes whose command line begins with or holds `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and title in (entry / "cmdline").read_text() and start_time(int(entry.name)):
                found.append(int(entry.name))
        except (OSError, UnicodeDecodeError):
            continue
    return found


def replicas() -> list[int]:
    return processes("ServeReplica:cachewarden:api")


def listening(pid: int) -> list[tuple[str, int]]:
    """Return (address, port) of every TCP socket on which a process listens; addresses as 8 or 32 hex digits."""
    inodes = set()
    for handle in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(handle.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A" and parts[9] in inodes:
                address, _, port = parts[1].rpartition(":")
                found.append((address, int(port, 16)))
    return found


async def test_the_replicas_are_replaced_under_load_without_a_failed_request(plane: Plane):
    load = Load(plane)
    before = set(replicas())
    assert len(before) == 2
    await load.during(asyncio.to_thread(plane.deploy, "2"))
    assert load.failed == Counter()
    assert before.isdisjoint(replicas()) or len(set(replicas()) - before) >= 2
    found = await recorded(plane)
    assert set(load.answered) <= found.keys()
    assert set(found.values()) == {1}


async def test_a_replica_that_is_killed_under_load_takes_no_answered_decision_with_it(plane: Plane):
    load = Load(plane)
    known = set(await recorded(plane))

    async def kill() -> None:
        victim = replicas()[0]
        os.kill(victim, signal.SIGKILL)
        await until(lambda: start_time(victim) is None, 20, "the end of the replica")

    await load.during(kill())
    found = await recorded(plane)
    assert set(load.answered) <= found.keys()
    assert set(found.values()) == {1}
    # What was durable when the replica died may not have been told any more: at most one of each caller.
    assert len(found.keys() - known - set(load.answered)) <= sum(load.failed.values()) <= 8
    await until(lambda: len(replicas()) == 2, 60, "another replica in its place")


async def test_requests_are_listened_for_on_the_loopback_only(plane: Plane):
    found = {pid: listening(pid) for pid in (*replicas(), *processes("haproxy.cfg"))}
    ports = {port for sockets in found.values() for _, port in sockets}
    assert plane.port in ports
    open_to_all = {port for sockets in found.values() for address, port in sockets if address != "0100007F"}
    serving = {port for port in open_to_all if 30_000 <= port <= 31_000} | (open_to_all & {plane.port})
    assert serving == set()
    haproxy = [found for pid in processes("haproxy.cfg") for found in listening(pid)]
    assert haproxy
    assert {address for address, _ in haproxy} == {"0100007F"}


async def test_a_request_keeps_its_id_through_the_ingress(plane: Plane):
    async with plane.client() as client:
        response = await client.post(OPTIMIZE, json=BODY, headers={"X-Request-ID": "req-42"})
        assert response.headers.get_list("X-Request-ID") == ["req-42"]
        assert len((await client.post(OPTIMIZE, json=BODY)).headers.get_list("X-Request-ID")) == 1


async def test_a_decision_goes_on_to_its_end_when_the_caller_leaves_in_the_middle(plane: Plane):
    journal = make_journal(plane.plan)

    async def decided() -> int:
        return len(await journal.read_back(("request_decided",)))

    try:
        before = await decided()
        body = b'{"service_name": "shop", "force_optimization": true}'
        head = f"Host: x\r\nAuthorization: Bearer {plane.token}\r\nContent-Type: application/json\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", plane.port)
        writer.write(
            f"POST /api/v1/cache/optimize HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )
        # The first record is there before the cycle that was asked for; what the cycle found is a record of its own.
        async with asyncio.timeout(20):
            while await decided() < before + 1:
                await asyncio.sleep(0.01)
        writer.transport.abort()
        async with asyncio.timeout(20):
            while await decided() < before + 2:
                await asyncio.sleep(0.05)
    finally:
        await journal.close()


async def test_a_body_of_50_mb_is_refused_before_it_is_sent(plane: Plane):
    sent = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", plane.port)
    head = (
        f"POST {OPTIMIZE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.token}\r\n"
        "Content-Type: application/json\r\nContent-Length: 50000000\r\n\r\n"
    )
    writer.write(head.encode() + b"x" * 1_000)
    await writer.drain()
    sent += 1_000
    line = await asyncio.wait_for(reader.readline(), 20)
    writer.close()
    assert b" 413 " in line
    assert sent < 50_000_000


@contextlib.asynccontextmanager
async def half_heads(plane: Plane, number: int):
    """Connections that have sent half of a request's head and will never send the rest."""
    writers: list[asyncio.StreamWriter] = []

    async def one() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", plane.port)
        writers.append(writer)
        writer.write(b"POST /api/v1/cache/optimize HTTP/1.1\r\nHost: x\r\nX-Slow: ")

    try:
        for start in range(0, number, 250):
            await asyncio.gather(*(one() for _ in range(min(250, number - start))))
        yield
    finally:
        for writer in writers:
            writer.transport.abort()


def room_for_connections() -> int:
    from cluster.ingress import connections_max

    return connections_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


async def test_ten_thousand_connections_that_send_next_to_nothing_keep_nobody_from_an_answer(plane: Plane):
    # Or as many as this machine lets a process have.
    async with half_heads(plane, min(10_000, room_for_connections() - 200)), plane.client() as client:
        for _ in range(20):
            assert (await client.post(OPTIMIZE, json=BODY)).status_code == 200


async def test_where_connections_outnumber_the_room_callers_wait_until_the_silent_ones_are_dropped(plane: Plane):
    number = room_for_connections() + 1_000
    if number + 500 > resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
        pytest.skip("a process may not have so many files here")
    async with half_heads(plane, number), plane.client() as client:
        with pytest.raises(httpx.TimeoutException):
            await client.post(OPTIMIZE, json=BODY, timeout=2)
        assert (await client.post(OPTIMIZE, json=BODY, timeout=120)).status_code == 200


async def test_a_body_that_drips_is_broken_off_while_others_are_answered(plane: Plane):
    _, writer = await asyncio.open_connection("127.0.0.1", plane.port)
    writer.write(
        (
            f"POST {OPTIMIZE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {plane.token}\r\n"
            'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"'
        ).encode()
    )
    await writer.drain()
    async with plane.client() as client:
        assert (await client.post(OPTIMIZE, json=BODY)).status_code == 200
    writer.close()


async def test_load_brings_a_replica_more_and_no_answer_is_lost_meanwhile(plane: Plane):
    # The last test of this module: the number of replicas is the load's from here on.
    before = set(replicas())
    await asyncio.to_thread(plane.deploy, "scaled", replicas=2, replicas_max=3, ongoing_target=0.1)
    await until(lambda: len(set(replicas()) - before) == len(replicas()) == 2, 60, "two replicas, both new")
    load = Load(plane)

    async def grown() -> None:
        await until(lambda: len(replicas()) == 3, 120, f"a third replica under load; {load.refused} {load.failed}")

    await load.during(grown(), callers=12)
    assert load.failed == Counter()
    found = await recorded(plane)
    assert set(load.answered) <= found.keys()
    assert set(found.values()) == {1}
