"""`python -m cluster whatif`: what another configuration would give, for a trace file or a service that runs.

It only parses and prints. INVARIANT: nothing that it does changes a cache.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cachewarden.errors import SettingsError
from cachewarden.settings import load_settings
from cluster.whatif_options import LiveQuestion, Memory, SearchOptions, memories, settings_of, share_of

if TYPE_CHECKING:
    from cluster.whatif_search import SearchAnswer
    from cluster.whatif_trace import TraceQuestion

__all__ = ["add_whatif_command"]

_POLICIES = ("allkeys-lru", "allkeys-lfu")
_FORMATS = "twitter, oracle-general, columns, plain, cloudphysics, arc, ids32, ids64"
_TABLE_COLUMNS = 170

_Several = list[str] | None
_File = Annotated[Path | None, typer.Argument(help="Trace file, plain or packed (gz, xz, zst).")]
_MemoryOption = Annotated[
    _Several, typer.Option(help="`64mb`, or `25%` of what the whole trace takes or of maxmemory; repeat or use commas.")
]
_Policy = Annotated[_Several, typer.Option(help="Eviction policies; repeat or use commas.")]
_Lfu = Annotated[_Several, typer.Option(help="LFU parameters `LOG_FACTOR:DECAY_MINUTES`.")]
_Ttl = Annotated[_Several, typer.Option(help="TTL given at every load in seconds, 0 for none, `keep` as it is.")]
_Url = Annotated[str | None, typer.Option(help="Ask the running deployment at this address instead.")]
_Service = Annotated[str | None, typer.Option(help="Its service.")]
_Token = Annotated[Path | None, typer.Option(help="File with its token; `admin-token` of STATE_DIR without it.")]
_Format = Annotated[str | None, typer.Option("--format", help=f"{_FORMATS}; told by name and content without it.")]
_Columns = Annotated[
    str | None, typer.Option(help="Columns of a text, e.g. `time-col=1,obj-id-col=2,obj-size-col=3,ttl-col=4`.")
]
_Rate = Annotated[float | None, typer.Option(help="Accesses per second, for formats without times.")]
_Limit = Annotated[int, typer.Option(min=1, help="Read so many rows at most.")]
_Share = Annotated[float, typer.Option(min=0.000001, max=1.0, help="Share of the keys to keep, by their hash.")]
_Entry = Annotated[int | None, typer.Option(min=1, help="Memory of an entry whose size the file does not say.")]
_WarmUp = Annotated[float, typer.Option(min=0.0, max=0.99, help="Share of the time whose hits are not counted.")]
_Samples = Annotated[int, typer.Option(min=1, max=64, help="maxmemory-samples.")]
_Seed = Annotated[int, typer.Option(help="Seed of the sampled eviction.")]
_At = Annotated[str | None, typer.Option(help="Memory now: compare with it, under the first configuration.")]
_Target = Annotated[str | None, typer.Option(help="Say the smallest memory that hits so much, e.g. `95%`.")]
_TtlReport = Annotated[
    bool, typer.Option("--ttl-report", help="With --url: say what TTLs do to the service, by prefix.")
]
_Plot = Annotated[Path | None, typer.Option(help="Draw miss ratio curves into a `.html` or `.png` file.")]
_Search = Annotated[
    bool, typer.Option("--search", help="Find the best configuration around the one of now: `--at`, first `--policy`.")
]
_Budget = Annotated[float, typer.Option(min=0.001, help="Million accesses that a search may replay.")]
_Gain = Annotated[float, typer.Option(min=0.0, max=100.0, help="Points of hit ratio that a change must surely give.")]
_Ray = Annotated[str | None, typer.Option(help="Search on Ray: `local`, or the address of a Ray cluster.")]
_Json = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]


def add_whatif_command(app: typer.Typer) -> None:
    """Put the command onto `app`."""
    app.command("whatif")(whatif)


def whatif(
    file: _File = None,
    memory: _MemoryOption = None,
    policy: _Policy = None,
    lfu: _Lfu = None,
    ttl: _Ttl = None,
    url: _Url = None,
    service: _Service = None,
    token_file: _Token = None,
    trace_format: _Format = None,
    columns: _Columns = None,
    rate: _Rate = None,
    limit: _Limit = 10_000_000,
    sample_rate: _Share = 1.0,
    entry_bytes: _Entry = None,
    warm_up: _WarmUp = 0.0,
    samples: _Samples = 5,
    seed: _Seed = 1,
    at: _At = None,
    target: _Target = None,
    ttl_report: _TtlReport = False,
    plot: _Plot = None,
    search: _Search = False,
    budget: _Budget = 2_000.0,
    minimum_gain: _Gain = 0.5,
    ray: _Ray = None,
    as_json: _Json = False,
) -> None:
    """Say what other memory sizes, eviction policies, LFU parameters and TTLs would give; nothing is changed.

    With FILE the trace is replayed; with --url and --service a running deployment answers from its newest look: its
    curve by memory and prefix where nothing is asked about, else what was asked.
    """
    _refuse_what_cannot_be_meant(file, url, at, ray, search=search, ttl_report=ttl_report, more=plot or target)
    wanted, goal = memories(memory or []), None if target is None else share_of(target)
    options = SearchOptions(round(1e6 * budget), minimum_gain / 100.0, ray) if search else None
    if file is None:
        settings = settings_of(policy or [], lfu or [], ttl or [])
        asked = LiveQuestion(url or "", service, token_file, wanted, settings, goal, ttl_report)
        _live(asked, options, plot, as_json=as_json)
        return
    from cachewarden.cachemodel.trace_files import ColumnSpec, TraceFormat
    from cluster.whatif_trace import TraceQuestion

    if trace_format is not None and trace_format not in list(TraceFormat):
        raise SettingsError(f"unknown trace format `{trace_format}`, use one of {_FORMATS}")
    question = TraceQuestion(
        path=file,
        trace_format=None if trace_format is None else TraceFormat(trace_format),
        columns=None if columns is None else ColumnSpec.parse(columns),
        rate_per_s=rate,
        limit=limit,
        sampling_rate=sample_rate,
        entry_bytes=entry_bytes,
        warm_up=warm_up,
        seed=seed,
        maxmemory_samples=samples,
        memories=wanted,
        settings=settings_of(policy or (_POLICIES if lfu or not search else _POLICIES[:1]), lfu or [], ttl or []),
        at=_one(at),
        target=goal,
        with_curves=plot is not None,
    )
    _replay(question, options, plot, as_json=as_json)


def _refuse_what_cannot_be_meant(
    file: Path | None,
    url: str | None,
    at: str | None,
    ray: str | None,
    *,
    search: bool,
    ttl_report: bool,
    more: object,
) -> None:
    if (file is None) == (url is None):
        raise SettingsError("give either a trace file, or `--url` and `--service` of a running deployment")
    if ray is not None and (not search or file is None):
        raise SettingsError("`--ray` spreads the search of a trace file, give FILE and `--search` too")
    if search and (more or ttl_report):
        raise SettingsError("a search asks for one thing, leave out `--plot`, `--target` and `--ttl-report`")
    if file is None and at is not None:
        raise SettingsError("`--at` needs a trace file")
    if file is not None and ttl_report:
        raise SettingsError("`--ttl-report` needs `--url` and `--service`")


def _one(text: str | None) -> Memory | None:
    if text is None:
        return None
    found = memories([text])
    if len(found) != 1:
        raise SettingsError(f"`--at` needs one amount of memory, not `{text}`")
    return found[0]


def _console() -> Console:
    console = Console()
    # Into a file or a pipe a table is written in full, not cut to a terminal's width.
    return console if console.is_terminal else Console(width=_TABLE_COLUMNS)


def _replay(question: TraceQuestion, options: SearchOptions | None, plot: Path | None, *, as_json: bool) -> None:
    if options is not None:
        from cluster.whatif_search import search_trace

        _show_search(search_trace(question, options), as_json=as_json)
        return
    from cluster.whatif_chart import check_target, draw
    from cluster.whatif_trace import answer

    if plot is not None:
        check_target(plot)
    found = answer(question)
    if plot is not None:
        draw(found.chart(), plot)
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
        return
    console = _console()
    console.print(found.table())
    for line in found.conclusions():
        console.print(line, markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    if plot is not None:
        console.print(f"curves drawn into {plot}", markup=False)


def _live(asked: LiveQuestion, options: SearchOptions | None, plot: Path | None, *, as_json: bool) -> None:
    from cluster import whatif_live
    from cluster.whatif_chart import check_target, draw

    if plot is not None:
        if asked.kind != "curve":
            raise SettingsError("`--plot` draws the curve of a service: ask for nothing else with it")
        check_target(plot)
    if asked.service is None:
        raise SettingsError("`--url` needs `--service`, the name of one service")
    token = whatif_live.read_token(asked.token_file or load_settings().state_dir / "admin-token")
    if options is not None:
        from cluster.whatif_search import search_live

        _show_search(asyncio.run(search_live(asked, options, token)), as_json=as_json)
        return
    answer = asyncio.run(whatif_live.answer_of(asked, token))
    if plot is not None:
        draw(whatif_live.chart_of(answer), plot)
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    console = _console()
    for part in whatif_live.shown(asked.kind, answer):
        console.print(part)
    if plot is not None:
        console.print(f"curve drawn into {plot}", markup=False)


def _show_search(answer: SearchAnswer, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(answer.as_json(), indent=2))
        return
    console = _console()
    console.print(answer.table())
    console.print(answer.verdict, markup=False)
