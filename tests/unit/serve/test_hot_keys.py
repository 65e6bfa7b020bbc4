"""Hot keys over HTTP and on the command line: hashes, measured advice, and reasons where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from serve_world import NOW_MS, MemoryBackend, Site, snapshot, state

from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.observation import AccessSample
from cluster.hotkeys_command import hotkey_tables

PATH = "/api/v1/cache/services/constitutional_ai/hotkeys"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(MemoryBackend(state()), tmp_path)


def captured(keys: list[int], ops: list[int]):
    n = len(keys)
    trace = AccessTrace.of(NOW_MS - 60_000 + np.arange(n), np.array(keys, np.uint64), op=np.array(ops, np.uint8))
    access = AccessSample(trace=trace, pattern=np.full(n, -1, np.int32), patterns=(), spatial_rate=1.0, lines_seen=n)
    return snapshot(access=access)


def printed(answer: dict) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(hotkey_tables(answer))
    return console.export_text()


async def test_a_key_that_is_read_by_all_is_advised_to_be_cached_in_the_client(site: Site):
    site.backend.looks["constitutional_ai"] = captured([7] * 600 + list(range(100, 1_500)), [Op.READ] * 2_000)
    answer = (await site.ask("GET", PATH, token="read")).json()
    (key,) = answer["keys"]
    assert (key["key_hash"], key["severity"]) == (f"{7:016x}", "high")
    advice = {m["measure"]: m for m in answer["measures"]}
    assert advice["client_side_caching"]["advised"]
    assert advice["client_side_caching"]["gain"]["value"] == pytest.approx(0.295, abs=0.01)
    assert "key_splitting" not in advice
    assert "advised: client side caching" in printed(answer)


async def test_a_key_that_is_written_all_the_time_is_advised_to_be_split(site: Site):
    site.backend.looks["constitutional_ai"] = captured(
        [7, 7] * 500 + list(range(100, 1_100)), [Op.READ, Op.WRITE] * 500 + [Op.READ] * 1_000
    )
    advice = {m["measure"]: m for m in (await site.ask("GET", PATH)).json()["measures"]}
    assert not advice["client_side_caching"]["advised"]
    assert advice["key_splitting"]["details"]["parts"] > 1


async def test_an_even_load_is_advised_nothing(site: Site):
    site.backend.looks["constitutional_ai"] = captured(list(range(2_000)), [Op.READ] * 2_000)
    answer = (await site.ask("GET", PATH)).json()
    assert answer["keys"] == []
    assert not any(m["advised"] for m in answer["measures"])


async def test_without_a_capture_and_counters_there_is_a_reason(site: Site):
    site.backend.looks["constitutional_ai"] = snapshot()
    answer = (await site.ask("GET", PATH)).json()
    assert not answer["answered"]
    assert answer["reason"]
    assert answer["reason"] in " ".join(printed(answer).split())


@pytest.mark.parametrize("query", ["?clients=0", "?limit=0", "?clients=x"])
async def test_nonsense_is_refused(site: Site, query: str):
    assert (await site.ask("GET", PATH + query)).status_code == 422
