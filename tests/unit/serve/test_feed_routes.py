"""The feed endpoint: what a recorder may do and nothing else, batches that cannot be, and how much is let in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from serve_world import SECRET, MemoryBackend, Site, snapshot, state

from cachewarden.cachemodel.shards import MODULUS
from cachewarden.fed_accesses import FeedReport
from cachewarden.feed import BODY_BYTES_MAX, ROWS_MAX, patterns_id, secret_fingerprint
from cachewarden.observation import SourceReport
from serve.feed import IN_FLIGHT_MAX, FeedDesk, FeedFull

PATH = "/api/v1/cache/feed"
SERVICE = "constitutional_ai"
PATTERNS = ("policy:", "policy:short:")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(MemoryBackend(state()), tmp_path)


def body(**changes) -> dict:
    plain = {
        "service_name": SERVICE, "recorder": "0a1b", "seq": 1, "secret_fingerprint": secret_fingerprint(SECRET),
        "patterns_id": patterns_id(PATTERNS), "spatial_rate": 0.5, "from_ms": 0, "to_ms": 2_000, "sent_ms": 2_010,
        "lookups": 10, "hits": 7, "misses": 3, "at_ms": [5, 9], "key": [2**63 + 5, 12], "op": [0, 1],
        "size_bytes": [0, 120], "ttl_ms": [0, 60_000], "pattern": [-1, 1], "missed": [1, -1],
    }  # fmt: skip
    return {**plain, **changes}


async def post(site: Site, token: str = "feed", **changes):
    return await site.ask("POST", PATH, token=token, json=body(**changes))


async def test_a_batch_goes_to_the_collector_and_is_answered_with_the_instruction_and_how_the_feed_stands(site: Site):
    site.backend.fed_reports[SERVICE] = FeedReport(
        service=SERVICE, recorders=2, batches=7, rows_held=14, dropped={"came twice": 1}, coverage=0.97, used=True,
        reason="2 recorders report 97% of the lookups that the server counted",
    )  # fmt: skip
    response = await post(site)
    assert response.status_code == 200, response.text
    (batch,) = site.backend.fed
    assert (batch.service, batch.recorder, batch.seq, batch.lookups) == (SERVICE, "0a1b", 1, 10)
    assert batch.key.tolist() == [2**63 + 5, 12]
    answer = response.json()
    assert answer["report"]["coverage"] == 0.97
    assert answer["instruction"]["patterns"] == list(PATTERNS)
    assert SECRET.decode() not in response.text
    assert site.backend.records == []
    text = (await site.ask("GET", "/metrics", token="read")).text
    assert f'cachewarden_feed_rows_total{{service="{SERVICE}"}} 2.0' in text


async def test_the_instruction_follows_the_load_of_the_cache(site: Site):
    async def rate() -> float:
        answer = await site.ask("GET", f"{PATH}/{SERVICE}", token="feed")
        assert answer.status_code == 200, answer.text
        return answer.json()["instruction"]["spatial_rate"]

    assert await rate() == 0.5
    site.backend.known = state(snapshots={SERVICE: snapshot(SERVICE, lookups_per_s=100_000.0)})
    assert await rate() == 2**-8
    site.backend.known = None
    assert await rate() == 2**-6


async def test_a_recorders_token_may_feed_and_do_nothing_else(site: Site):
    for method, path in (
        ("GET", "/api/v1/cache/services"),
        ("GET", f"/api/v1/cache/services/{SERVICE}"),
        ("GET", "/api/v1/cache/plans"),
        ("GET", "/api/v1/audit"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("POST", "/api/v1/cache/optimize"),
        ("POST", "/api/v1/cache/warm"),
        ("POST", "/api/v1/cache/whatif"),
        ("POST", "/api/v1/control/kill"),
    ):
        refused = await site.ask(method, path, token="feed", **({"json": {}} if method == "POST" else {}))
        assert refused.status_code == 403, path
    for token in ("read", "operate"):
        assert (await post(site, token)).status_code == 403
    assert (await post(site, "admin")).status_code == 200
    assert (await site.ask("POST", PATH, token=None, json=body())).status_code == 401


async def test_a_recorder_cannot_fill_the_journal_with_wrong_hashes(site: Site):
    for _ in range(20):
        assert (await post(site, constitutional_hash="nonsense")).status_code == 403
    assert len(site.backend.records) == 1
    assert site.backend.fed == []


@pytest.mark.parametrize(
    ("changes", "status", "why"),
    [
        ({"secret_fingerprint": "0" * 16}, 409, "another secret"),
        ({"patterns_id": "0" * 16}, 409, "patterns of the fleet file have changed"),
        ({"service_name": "api_gateway"}, 409, "`feed: true`"),
        ({"service_name": "constitutional"}, 404, "unknown service"),
        ({"sent_ms": 100}, 422, "before it happened"),
        ({"at_ms": [5, 99_999]}, 422, "within from_ms to to_ms"),
        ({"key": [MODULUS // 2, 1]}, 422, "drops"),
        ({"key": [2**64, 1]}, 422, "`key`"),
        ({"size_bytes": [0, 2**40]}, 422, "`size_bytes`"),
        ({"pattern": [-1, 2]}, 422, "`pattern`"),
        ({"op": [0]}, 422, "one value per row"),
        ({"op": [0.5, 1]}, 422, "op"),
        ({"at_ms": [1] * (ROWS_MAX + 1)}, 422, "at_ms"),
        ({"lookups": 2**40}, 422, "beyond all traffic"),
        ({"hits": 11}, 422, "more than 10 lookups"),
        ({"spatial_rate": 0}, 422, "spatial_rate"),
        ({"recorder": "a b"}, 422, "recorder"),
        ({"keys": ["page:1"]}, 422, "did you mean `key`"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_batch_that_cannot_be_is_refused_with_the_way_out(site: Site, changes: dict, status: int, why: str):
    response = await post(site, **changes)
    assert response.status_code == status, response.text
    assert why in response.json()["error"]["message"]
    assert site.backend.fed == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"x" * (50 << 20), 413),
        (b"\x00\xff" * 100, 400),
        (b"[" * 10_000, 400),
        (b"[]", 422),
        (b'{"lookups": NaN}', 400),
        (b"", 422),
    ],
    ids=["50 MB", "binary", "nested", "a list", "NaN", "nothing"],
)
async def test_garbage_and_bodies_without_end_are_refused(site: Site, content: bytes, status: int):
    headers = {"Content-Type": "application/json"}
    response = await site.ask("POST", PATH, token="feed", content=content, headers=headers)
    assert response.status_code == status
    assert site.backend.fed == []


def test_the_largest_batch_that_is_permitted_fits_into_the_body_that_is_permitted():
    most = body(
        at_ms=[2**52] * ROWS_MAX, key=[2**64 - 1] * ROWS_MAX, op=[1] * ROWS_MAX, size_bytes=[2**30] * ROWS_MAX,
        ttl_ms=[2**45] * ROWS_MAX, pattern=[-1] * ROWS_MAX, missed=[-1] * ROWS_MAX,
    )  # fmt: skip
    assert len(json.dumps(most, separators=(",", ":"))) <= BODY_BYTES_MAX


async def test_more_rows_a_second_than_a_collector_should_take_are_put_off(site: Site):
    rows = {name: [value[0]] * ROWS_MAX for name, value in body().items() if isinstance(value, list)}
    answers = [await post(site, seq=n, lookups=ROWS_MAX, hits=0, misses=0, **rows) for n in range(20)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert len(site.backend.fed) == statuses.count(200) < 20


async def test_no_more_batches_are_on_their_way_than_the_bound_and_places_come_back():
    desk = FeedDesk()
    held = [desk.admit("shop", 1, 0.0) for _ in range(IN_FLIGHT_MAX)]
    for place in held:
        await place.__aenter__()
    with pytest.raises(FeedFull, match="on their way"):
        await desk.admit("shop", 1, 0.0).__aenter__()
    await held[0].__aexit__(None, None, None)
    async with desk.admit("shop", 1, 0.0):
        pass


async def test_a_service_view_says_which_source_answers_at_which_cost_and_error(site: Site):
    told = SourceReport(
        name="client_feed", used=True, reason="2 recorders report 97%", cost="none", expected_error=0.004,
        error_basis="20000 keys", coverage=0.97,
    )  # fmt: skip
    site.backend.known = state(snapshots={SERVICE: snapshot(SERVICE, sources=(told,))})
    view = (await site.ask("GET", f"/api/v1/cache/services/{SERVICE}", token="read")).json()["service"]
    assert view["sources"] == [
        {"name": "client_feed", "used": True, "reason": "2 recorders report 97%", "cost": "none",
         "expected_error": 0.004, "error_basis": "20000 keys", "coverage": 0.97}
    ]  # fmt: skip
