"""`python -m cluster whatif`: on tiny trace files, and against the real API in process."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import httpx
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from cachewarden.errors import OperatingError, SettingsError
from cluster import whatif_live
from cluster.whatif_chart import Chart, Curve, amount, html_of
from cluster.whatif_commands import add_whatif_command
from cluster.whatif_options import Memory, Setting, memories, settings_of
from tests.unit.serve.serve_world import MemoryBackend, Site, captured_look, state


def run(*arguments: object, fails: type[Exception] | None = None) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_whatif_command(app)
    result = CliRunner().invoke(app, ["whatif", *map(str, arguments)])
    if fails is None:
        assert result.exit_code == 0, result.exception or result.output
        return result.stdout
    assert isinstance(result.exception, fails), result.exception or result.output
    return str(result.exception)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    ids = np.random.default_rng(5).zipf(1.3, 20_000) % 2_000
    path = tmp_path / "cache2k_zipf.trace"
    path.write_bytes(ids.astype(">u4").tobytes())
    return path


def test_a_trace_gives_a_table_of_every_combination(trace: Path):
    text = run(trace, "--rate", 100, "--memory", "5%,20%", "--lfu", "10:1,1:10", "--at", "5%")
    assert text.count("│ allkeys-lfu 1:10") == 2
    assert text.count("│ allkeys-lru") == 2
    assert "now" in text
    assert "ids32" in text


def test_json_holds_ratios_and_what_they_rest_on(trace: Path):
    options = ("--rate", 100, "--memory", 2000, "--policy", "allkeys-lru", "--ttl", "keep,30", "--json")
    found = json.loads(run(trace, *options, "--limit", 15_000, "--warm-up", 0.1))
    assert (found["format"], found["rows_read"], found["limited"]) == ("ids32", 15_000, True)
    assert (found["memory_unit"], found["entry_bytes"]) == ("keys", None)
    kept, short = found["results"]
    assert (kept["configuration"], short["configuration"]) == ("allkeys-lru", "allkeys-lru, TTL 30 s")
    assert short["hit_ratio"] < kept["hit_ratio"] < 1.0
    assert short["expired"] > 0 == kept["expired"]
    assert json.loads(run(trace, *options, "--limit", 15_000, "--warm-up", 0.1)) == found


def test_sampling_says_how_wrong_it_may_be(trace: Path):
    found = json.loads(run(trace, "--rate", 100, "--sample-rate", 0.5, "--memory", "10%", "--json"))
    (lru, _) = found["results"]
    assert lru["hit_ratio_low"] < lru["hit_ratio"] < lru["hit_ratio_high"]
    assert found["sampled_keys"] < 1000


def test_changes_are_told_against_the_operating_point_with_their_intervals(trace: Path):
    options = ("--rate", 100, "--sample-rate", 0.5, "--memory", "5%,20%", "--at", "10%", "--json")
    found = json.loads(run(trace, *options))
    assert found["operating_point"]["change"] == 0.0
    for result in found["results"]:
        gained = result["hit_ratio"] - found["operating_point"]["hit_ratio"]
        assert result["change"] == pytest.approx(gained)
        assert result["change_low"] < result["change"] < result["change_high"]
    assert found["decision"]["advice"] in ("change", "none", "unknown")


def test_a_target_is_answered_with_the_smallest_memory_or_the_reason_why_there_is_none(trace: Path):
    found = json.loads(run(trace, "--rate", 100, "--target", "80%", "--memory", "5%", "--json"))
    assert [t["configuration"] for t in found["targets"]] == ["allkeys-lru", "allkeys-lfu 10:1"]
    for target in found["targets"]:
        assert 0 < target["memory_low"] <= target["memory"] <= target["memory_high"]
    text = run(trace, "--rate", 100, "--target", "0.8", "--memory", "5%", "--policy", "allkeys-lru")
    assert "keys reach 80.00% (interval" in text
    assert "come for the first time" in run(trace, "--rate", 100, "--target", "99.9%", "--memory", "5%")


def test_a_sample_too_small_for_a_point_is_told_with_the_size_that_would_do(trace: Path):
    text = run(trace, "--rate", 100, "--sample-rate", 0.05, "--memory", "10%", "--at", "10%")
    assert "not enough evidence" in text
    assert "keys are sampled" in text


def test_columns_and_entry_sizes_can_be_told(tmp_path: Path):
    path = tmp_path / "own.txt"
    path.write_text("".join(f"{n};{n % 7}\n" for n in range(100)))
    found = json.loads(
        run(path, "--columns", "time-col=1,obj-id-col=2,delimiter=;", "--entry-bytes", 100, "--memory", "1kb", "--json")
    )
    assert (found["format"], found["memory_unit"], found["footprint"]) == ("columns", "bytes", 700)
    assert found["results"][0]["hit_ratio"] == pytest.approx(0.93)


def test_curves_are_drawn_into_one_html_file_with_the_operating_point(trace: Path, tmp_path: Path):
    target = tmp_path / "curves.html"
    run(trace, "--rate", 100, "--at", "10%", "--plot", target, "--json")
    page = target.read_text()
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    assert len(svg.findall("polyline")) == 2
    assert len(svg.findall("polygon")) == 2
    assert "now: " in page
    assert "http" not in page


def test_names_are_text_in_the_page_never_markup():
    page = html_of(Chart("<script>", "a & b", [Curve("<b>", (10, 100), (0.9, 0.1))], (50, 0.5), in_keys=True))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "a &amp; b" in page


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "either a trace file"),
        (("TRACE", "--url", "http://x"), "either a trace file"),
        (("TRACE",), "`--rate`"),
        (("TRACE", "--rate", 0), "`--rate`"),
        (("TRACE", "--rate", 1, "--format", "vhs"), "unknown trace format `vhs`"),
        (("TRACE", "--rate", 1, "--memory", "0"), "holds nothing"),
        (("TRACE", "--rate", 1, "--memory", "x%"), "no share"),
        (("TRACE", "--rate", 1, "--policy", "lru"), "unknown eviction policy `lru`"),
        (("TRACE", "--rate", 1, "--lfu", "10"), "LOG_FACTOR:DECAY_MINUTES"),
        (("TRACE", "--rate", 1, "--ttl", "-5"), "no TTL"),
        (("TRACE", "--rate", 1, "--at", "1mb,2mb"), "one amount"),
        (("TRACE", "--rate", 1, "--target", "150%"), "no hit ratio"),
        (("TRACE", "--rate", 1, "--target", "much"), "no hit ratio"),
        (("TRACE", "--rate", 1, "--plot", "x.pdf"), "name it `.html` or `.png`"),
        (("TRACE", "--columns", "obj-id-col=0"), "counted from 1"),
        (("--url", "http://127.0.0.1:1"), "needs `--service`"),
        (("--url", "http://127.0.0.1:1", "--service", "s", "--at", "1mb"), "needs a trace file"),
        (("--url", "http://127.0.0.1:1", "--service", "s", "--token-file", "nothing"), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_told_with_the_way_out(trace: Path, arguments: tuple, told: str):
    given = [trace if a == "TRACE" else a for a in arguments]
    assert told in run(*given, fails=Exception)


def test_a_png_without_matplotlib_names_the_way_out(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    told = run(trace, "--rate", 1, "--plot", tmp_path / "x.png", fails=SettingsError)
    assert "write `.html` instead" in told


def test_combinations_are_complete_and_lfu_parameters_belong_to_lfu():
    found = settings_of(["allkeys-lru,volatile-lfu"], ["10:1", "1:10"], ["60"])
    assert found == [
        Setting("allkeys-lru", None, 60_000),
        Setting("volatile-lfu", (10, 1), 60_000),
        Setting("volatile-lfu", (1, 10), 60_000),
    ]
    assert memories(["1mb, 25%"]) == [Memory(bytes=1 << 20), Memory(share=0.25)]
    assert amount(3 << 30) == "3.0 GiB"


# --- Live


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    backend = MemoryBackend(state())
    backend.looks["constitutional_ai"] = captured_look()
    made = Site(backend, tmp_path)

    def in_process(url: str, token: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=made.app), base_url=url, headers={"Authorization": f"Bearer {token}"}
        )

    monkeypatch.setattr(whatif_live, "client_of", in_process)
    (tmp_path / "token").write_text(made.tokens["read"] + "\n")
    return made


def live(tmp_path: Path, *more: object) -> tuple[object, ...]:
    return ("--url", "http://test", "--service", "constitutional_ai", "--token-file", tmp_path / "token", *more)


def test_a_live_service_answers_configurations_that_are_asked_about(site: Site, tmp_path: Path):
    found = json.loads(run(*live(tmp_path, "--memory", "50%,200%", "--json")))
    assert [r["candidate"]["maxmemory_bytes"] >> 20 for r in found["results"]] == [20, 80]
    text = run(*live(tmp_path, "--memory", "80mb", "--policy", "allkeys-lru,noeviction"))
    assert "80.0 MiB" in text
    assert "observed: hit ratio 80.00 %" in text or "observed: hit ratio 80.00%" in text
    assert "no model can" in text


def test_a_refusal_of_the_api_is_told_in_its_words(site: Site, tmp_path: Path):
    (tmp_path / "token").write_text("cw_wrong")
    assert "refused (401)" in run(*live(tmp_path, "--memory", "1mb"), fails=OperatingError)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(SettingsError, match="no address of the API"):
        whatif_live.client_of("ftp://x", "t")


# --- Search


def test_a_search_names_the_best_configuration_with_its_interval_and_the_trail(trace: Path):
    found = json.loads(run(trace, "--rate", 10, "--at", "5%", "--search", "--json"))
    assert found["conclusion"] in {"change", "no change"}
    assert found["now"]["configuration"] == "allkeys-lru"
    assert found["exhaustive"] is True
    assert all(one["fate"] for one in found["trail"])
    names = {one["configuration"] for one in found["trail"]}
    assert {"allkeys-random", "allkeys-lru, 10 samples"} <= names
    text = run(trace, "--rate", 10, "--at", "5%", "--search")
    assert found["best"]["configuration"] in text
    assert "every candidate on the whole sample" in text


def test_what_is_named_is_what_a_search_tries(trace: Path):
    options = ("--rate", 10, "--at", "5%", "--search", "--json")
    found = json.loads(run(trace, *options, "--policy", "allkeys-lru,allkeys-lfu", "--lfu", "1:5,1:20"))
    assert {
        (one["lfu_log_factor"], one["lfu_decay_time_min"]) for one in found["trail"] if "lfu" in one["configuration"]
    } == {
        (1, 5),
        (1, 20),
    }
    assert not any("random" in one["configuration"] for one in found["trail"])


def test_a_small_budget_is_spent_on_halving_and_kept(trace: Path):
    found = json.loads(run(trace, "--rate", 10, "--at", "5%", "--search", "--budget", 0.06, "--json"))
    assert found["exhaustive"] is False
    assert found["accesses"] < 9 * 20_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--search",), "needs the memory now"),
        (("--ray", "local"), "`--search` too"),
        (("--search", "--at", "5%", "--plot", "x.html"), "leave out `--plot`"),
        (("--search", "--at", "5%", "--target", "95%"), "asks for one thing"),
    ],
)
def test_a_search_that_cannot_be_meant_is_told_with_the_way_out(trace: Path, arguments: tuple, told: str):
    assert told in run(trace, "--rate", 10, *arguments, fails=SettingsError)


def test_a_running_service_is_searched_from_its_newest_look(site: Site, tmp_path: Path):
    found = json.loads(run(*live(tmp_path, "--search", "--json")))
    assert found["of"] == "constitutional_ai"
    assert found["now"]["hit_ratio"] == pytest.approx(0.8)
    assert found["conclusion"] in {"change", "no change", "not enough evidence"}
    assert any("allkeys-lfu" in one["configuration"] for one in found["trail"])
