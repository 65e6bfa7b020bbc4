"""The recorder on redis-py and real servers: it sees what was asked and answered, and the application notices nothing.

The endpoint is a small HTTP server that reads batches with the API's own models; what it answers is the test's to say.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import redis
import redis.asyncio

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import hash_key
from cachewarden.cachemodel.trace import Op
from cachewarden.fed_accesses import FeedBatch
from cachewarden.feed import patterns_id, secret_fingerprint
from cachewarden.fleet import Service
from cachewarden.recorder import Recorder, attach
from serve.feed import FeedBatchRequest, batch_of
from tests.contract.real_servers import ENGINES, RealServer

SECRET = b"contract"
SHOP = Service(name="shop", url="redis://unused", feed=True, patterns=({"prefix": "page:"}, {"prefix": "page:short:"}))
PATTERNS = tuple(pattern.prefix for pattern in SHOP.patterns)


class Endpoint:
    """Keeps the batches that it gets. `status` and `fingerprint` are its faults."""

    def __init__(self) -> None:
        self.batches: list[FeedBatch] = []
        self.refused: list[str] = []
        self.asked = 0
        self.rate = 1.0
        self.status = 200
        self.fingerprint = secret_fingerprint(SECRET)
        self.answer: bytes | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self._say()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.status == 200:
                    try:
                        request = FeedBatchRequest.model_validate_json(body)
                        outer.batches.append(batch_of(request, SHOP))
                    except ValueError as error:
                        outer.refused.append(str(error))
                self._say()

            def _say(self) -> None:
                instruction = {
                    "service_name": "shop", "spatial_rate": outer.rate, "patterns": list(PATTERNS),
                    "secret_fingerprint": outer.fingerprint, "patterns_id": patterns_id(PATTERNS), "flush_ms": 100,
                    "rows_max": 2_000,
                }  # fmt: skip
                document: Any = {"instruction": instruction, "report": {"used": True}}
                if outer.status >= 400:
                    document = {"error": {"message": "the endpoint says no"}}
                body = outer.answer if outer.answer is not None else json.dumps(document).encode()
                self.send_response(outer.status)
                self.send_header("Content-Length", str(len(body)))
                if outer.status == 302:
                    self.send_header("Location", outer.url + "/elsewhere")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def rows(self) -> list[tuple[int, int, int, int, int, int]]:
        """(key, op, size, ttl, pattern, missed) of all rows in order."""
        return [
            row
            for batch in self.batches
            for row in zip(
                batch.key.tolist(), batch.op.tolist(), batch.size_bytes.tolist(), batch.ttl_ms.tolist(),
                batch.pattern.tolist(), batch.missed.tolist(), strict=True,
            )
        ]  # fmt: skip


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.01)


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def recorder(endpoint):
    with Recorder(endpoint.url, service="shop", token="cw_test", secret=SECRET) as recorder:
        yield recorder


def key(name: str) -> int:
    return hash_key(SECRET, name.encode())


def read(name: str, length: int | None, pattern: int = -1) -> tuple:
    """The row of a GET: `length` of the value, None for a miss."""
    size = entry_bytes(len(name), length, False) if length else 0
    return (key(name), int(Op.READ), size, 0, pattern, int(length is None))


def written(name: str, length: int | None, ttl_ms: int = 0, pattern: int = -1) -> tuple:
    size = 0 if length is None else entry_bytes(len(name), length, ttl_ms > 0)
    return (key(name), int(Op.WRITE), size, ttl_ms, pattern, -1)


def deleted(name: str) -> tuple:
    return (key(name), int(Op.DELETE), 0, 0, -1, -1)


def ready(recorder: Recorder) -> None:
    until(lambda: recorder.status()["problem"] is None, "an instruction")


def work(client: redis.Redis) -> list[Any]:
    """What an application may do; returns every answer."""
    answers: list[Any] = [
        client.set("page:1", "ä" * 10, ex=60),
        client.get("page:1"),
        client.get(b"absent"),
        client.set(7, 12345),
        client.get(7),
        client.mget("page:1", "absent", "page:short:2"),
        client.execute_command("SETEX", "page:short:2", 5, b"12345678"),
        client.set("once", "x", nx=True),
        client.set("once", "y", nx=True),
        client.execute_command("PSETEX", "brief", 1500, "x"),
        client.set("late", "x" * 100),
        client.expire("late", 30),
        client.hset("h", mapping={"a": 1}),
        client.hget("h", "a"),
        client.hget("h", "no"),
        client.hgetall("none"),
        client.delete("page:1", "absent"),
        client.exists("h", "none"),
        client.getdel("once"),
        client.execute_command("get", "h2"),
    ]
    with client.pipeline(transaction=False) as pipe:
        answers.append(pipe.get("late").get("absent").set("p", "123").execute())
    with client.pipeline() as pipe:
        pipe.watch("late")
        answers.append(pipe.get("late"))
        pipe.multi()
        answers.append(pipe.get("absent").incr("n").execute())
    with pytest.raises(redis.ResponseError):
        client.get("h")
    with client.pipeline(transaction=False) as pipe:
        found = pipe.get("h").get("late").execute(raise_on_error=False)
        answers.append([isinstance(found[0], redis.ResponseError), found[1]])
    return answers


EXPECTED = [
    written("page:1", 20, 60_000, 0),
    read("page:1", 20, 0),
    read("absent", None),
    written("7", 5),
    read("7", 5),
    read("page:1", 20, 0),
    read("absent", None),
    read("page:short:2", None, 1),
    written("page:short:2", 8, 5_000, 1),
    written("once", 1),
    written("brief", 1, 1_500),
    # Written without a TTL, which came in a second command.
    (key("late"), int(Op.WRITE), entry_bytes(4, 100, False), 30_000, -1, -1),
    written("h", None),
    (key("h"), int(Op.READ), 0, 0, -1, 0),
    (key("h"), int(Op.READ), 0, 0, -1, -1),
    (key("none"), int(Op.READ), 0, 0, -1, 1),
    (key("page:1"), int(Op.DELETE), 0, 0, 0, -1),
    deleted("absent"),
    read("once", 1),
    deleted("once"),
    read("h2", None),
    read("late", 100),
    read("absent", None),
    written("p", 3),
    read("late", 100),
    read("absent", None),
    written("n", None),
    read("late", 100),
]


@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}], ids=str)
def test_a_watched_client_answers_as_ever_and_everything_is_reported(server, endpoint, recorder, options):
    plain = redis.Redis(port=server.port, **options)
    expected = work(plain)
    plain.flushall()
    client = redis.Redis(port=server.port, **options)
    assert recorder.attach(client) is client
    assert isinstance(client, redis.Redis)
    ready(recorder)
    hits, misses = server.lookups()
    assert work(client) == expected
    after = server.lookups()
    assert recorder.flush()
    assert endpoint.refused == []
    assert endpoint.rows() == EXPECTED
    # The server counts two more: GET of a hash is a hit for it, though the client gets an error.
    lookups = sum(batch.lookups for batch in endpoint.batches)
    assert lookups == sum(after) - hits - misses - 2
    assert sum(batch.misses for batch in endpoint.batches) == after[1] - misses
    assert recorder.status()["failures"] == 0
    assert recorder.detach(client) is client
    assert type(client) is redis.Redis
    plain.close()
    client.close()


async def test_a_client_of_asyncio_is_watched_with_its_pipelines(server, endpoint, recorder):
    client = recorder.attach(redis.asyncio.Redis(port=server.port))
    ready(recorder)
    assert await client.set("page:1", b"x" * 50, px=2_500)
    assert await client.get("page:1") == b"x" * 50
    assert await client.get("absent") is None
    async with client.pipeline(transaction=True) as pipe:
        assert await pipe.get("page:1").get("absent").execute() == [b"x" * 50, None]
    async with client.pipeline() as pipe:
        await pipe.watch("page:1")
        assert await pipe.get("page:1") == b"x" * 50
        pipe.multi()
        pipe.set("page:1", b"y")
        assert await pipe.execute() == [True]

    async def count(pipe):
        pipe.multi()
        pipe.incr("n")

    assert await client.transaction(count, "n") == [1]
    with pytest.raises(redis.ResponseError):
        await client.execute_command("GET")
    await client.aclose()
    assert recorder.flush()
    hit, miss = read("page:1", 50, 0), read("absent", None)
    assert endpoint.rows() == [
        written("page:1", 50, 2_500, 0), hit, miss, hit, miss, hit, written("page:1", 1, 0, 0), written("n", None)
    ]  # fmt: skip
    assert recorder.status()["failures"] == 0


def test_only_keys_that_pass_the_spatial_filter_are_reported_but_all_lookups_are_counted(server, endpoint, recorder):
    endpoint.rate = 0.25
    client = recorder.attach(redis.Redis(port=server.port))
    ready(recorder)
    for number in range(400):
        client.get(f"page:{number}")
    assert recorder.flush()
    wanted = {key(f"page:{n}") for n in range(400) if key(f"page:{n}") % (1 << 24) < (1 << 22)}
    assert {row[0] for row in endpoint.rows()} == wanted
    assert sum(batch.lookups for batch in endpoint.batches) == 400
    client.close()


def test_a_dead_endpoint_and_one_that_talks_nonsense_disturb_nobody(server, endpoint):
    dead = Recorder("http://127.0.0.1:9", service="shop", token="cw", secret=SECRET, timeout_s=0.2)
    endpoint.answer = b"<html>" * 100
    confused = Recorder(endpoint.url, service="shop", token="cw", secret=SECRET)
    for recorder in (dead, confused):
        client = recorder.attach(redis.Redis(port=server.port))
        until(lambda r=recorder: r.status()["problem"] not in (None, "has not asked for instructions yet"), "a failure")
        assert client.set("page:1", "x")
        assert client.get("page:1") == b"x"
        assert recorder.status()["lookups"] == 0
        recorder.close(0.5)
        assert client.get("page:1") == b"x"
        client.close()


def test_a_recorder_with_another_secret_reports_nothing_and_says_why(server, endpoint, caplog):
    with Recorder(endpoint.url, service="shop", token="cw", secret="another") as recorder:
        client = recorder.attach(redis.Redis(port=server.port))
        until(lambda: "secret differs" in (recorder.status()["problem"] or ""), "the refusal")
        client.get("page:1")
        assert not recorder.flush()
        client.close()
    assert endpoint.batches == []
    assert sum("secret differs" in record.message for record in caplog.records) == 1
    assert "another" not in caplog.text


@pytest.mark.parametrize("status", [302, 401, 404, 413, 422, 429, 500, 503])
def test_whatever_the_endpoint_answers_the_application_goes_on_and_little_is_held(server, endpoint, recorder, status):
    client = recorder.attach(redis.Redis(port=server.port))
    ready(recorder)
    endpoint.status = status
    for _ in range(50):
        client.get("page:1")
    until(lambda: f"HTTP {status}" in (recorder.status()["problem"] or ""), "the refusal")
    for _ in range(50):
        assert client.get("page:1") is None
    assert recorder.status()["batches_pending"] <= 8
    assert recorder.status()["failures"] == 0
    client.close()


def test_a_batch_whose_answer_was_lost_is_sent_again_with_its_number(server, endpoint, recorder):
    client = recorder.attach(redis.Redis(port=server.port))
    ready(recorder)
    endpoint.answer = b"cut off"
    client.get("page:1")
    until(lambda: endpoint.batches and recorder.status()["problem"], "a first attempt")
    endpoint.answer = None
    until(lambda: recorder.status()["batches_sent"] > 0, "a second attempt")
    first, second = endpoint.batches[:2]
    assert (first.recorder, first.seq) == (second.recorder, second.seq)
    assert second.sent_ms > first.sent_ms
    client.close()


def test_a_forked_child_reports_for_itself_and_does_not_repeat_its_parent(server, endpoint, recorder):
    client = recorder.attach(redis.Redis(port=server.port))
    ready(recorder)
    client.get("of the parent")
    child = os.fork()
    if child == 0:
        # Whatever happens, pytest must not go on twice.
        code = 2
        try:
            mine = redis.Redis(port=server.port)
            recorder.attach(mine)
            until(lambda: recorder.status()["problem"] is None, "an instruction of the child")
            mine.get("of the child")
            code = 0 if recorder.flush() else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert recorder.flush()
    reported = [(batch.recorder, k) for batch in endpoint.batches for k in batch.key.tolist()]
    assert sorted(k for _, k in reported) == sorted([key("of the parent"), key("of the child")])
    assert len({name for name, _ in reported}) == 2
    client.close()


def test_what_is_no_client_is_refused_when_it_is_attached(recorder, server):
    client = redis.Redis(port=server.port)
    for wrong in (object(), client.pipeline()):
        with pytest.raises(TypeError, match="is no client"):
            recorder.attach(wrong)
    with pytest.raises(ValueError, match="latin"):
        recorder.attach(redis.Redis(port=server.port, encoding="latin-1"))
    recorder.attach(client)
    recorder.attach(client)
    with (
        Recorder("http://127.0.0.1:9", service="shop", token="cw", secret=SECRET) as other,
        pytest.raises(ValueError, match="another recorder"),
    ):
        other.attach(client)
    client.close()


def test_without_an_environment_the_client_stays_as_it_is_and_the_log_says_what_is_missing(server, monkeypatch, caplog):
    for name in ("URL", "SERVICE", "TOKEN", "HASH_SECRET"):
        monkeypatch.delenv(f"CACHEWARDEN_{name}", raising=False)
    client = redis.Redis(port=server.port)
    assert attach(client) is client
    assert type(client) is redis.Redis
    assert "CACHEWARDEN_HASH_SECRET" in caplog.text
    client.close()
