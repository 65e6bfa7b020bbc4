"""Hot keys over HTTP and on the command line: hashes, measured advice, and reasons where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from serve_world import NOW_MS, MemoryBackend, Site, snapshot, state

from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.observation import AccessSample, ClusterLoad
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


# --- Slots of a cluster ---------------------------------------------------------------------------------------------


def node(name: str, slots: dict[int, float], other: float = 0.0, primaries: int = 2, cluster: str = "c"):
    load = ClusterLoad(
        cluster=cluster, primaries=primaries, window_ms=30_000, slots=tuple(slots.items()), other_us_per_s=other
    )
    return replace(snapshot(name), cluster=load)


async def moves_told(site: Site, *nodes) -> dict:
    site.backend.looks["constitutional_ai"] = nodes[0]
    site.backend.known = replace(site.backend.known, snapshots={n.service: n for n in nodes})
    answer = (await site.ask("GET", PATH)).json()
    assert answer["slot_moves"]["reason"] in " ".join(printed(answer).split())
    return answer["slot_moves"]


async def test_slots_are_proposed_to_move_with_the_balance_that_this_would_give(site: Site):
    told = await moves_told(
        site, node("constitutional_ai", {5: 40.0, 6: 30.0, 7: 20.0}, 10.0), node("integrity_service", {9: 20.0})
    )
    assert told["advised"]
    assert told["moves"] == [{"slot": 5, "from": "constitutional_ai", "to": "integrity_service", "share": 0.3333}]
    assert told["shares_after"] == {"constitutional_ai": 0.5, "integrity_service": 0.5}


async def test_one_slot_that_is_too_hot_is_said_to_be_unmovable(site: Site):
    told = await moves_told(site, node("constitutional_ai", {5: 90.0}), node("integrity_service", {9: 10.0}))
    assert not told["advised"]
    assert [u["slot"] for u in told["unmovable"]] == [5]
    assert "single slot" in told["reason"]


async def test_without_all_nodes_of_the_cluster_nothing_is_proposed(site: Site):
    told = await moves_told(
        site,
        node("constitutional_ai", {5: 90.0}, primaries=3),
        node("integrity_service", {9: 1.0}, cluster="another"),
    )
    assert not told["advised"]
    assert "3 primaries, of which 1" in told["reason"]


async def test_a_cluster_without_statistics_says_what_to_switch_on(site: Site):
    blind = replace(snapshot("constitutional_ai"), incomplete={"cluster": "set `cluster-slot-stats-enabled yes`"})
    told = await moves_told(site, blind)
    assert not told["advised"]
    assert "cluster-slot-stats-enabled" in told["reason"]


async def test_a_server_that_is_no_node_of_a_cluster_has_no_slots_to_speak_of(site: Site):
    site.backend.looks["constitutional_ai"] = snapshot()
    assert (await site.ask("GET", PATH)).json()["slot_moves"] is None
