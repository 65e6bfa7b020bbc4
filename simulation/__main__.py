"""`python -m simulation`: run scenarios from seeds, on all cores or a Ray cluster, and explain the first failure.

Exit code 0: every promise held; 1: one was broken; 2: what was asked for cannot be run. It decides nothing.
"""

from __future__ import annotations

import json
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from simulation.durations import words_of_ms
from simulation.fault_words import WORDS
from simulation.html_report import RUNS_DRAWN_MAX, page_of
from simulation.mixes import MIXES, draw_faults
from simulation.report import as_json, failure_text
from simulation.run import Outcome, checkers_of, run_once
from simulation.scenario import Scenario, ScenarioError, load_scenario, scenario_files
from simulation.shrink import shrink
from simulation.worker import run_one

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_AHEAD = 4
"""Runs that wait per process, so that a run that fails early is not behind a thousand others."""


@app.command()
def main(
    seed: Annotated[int, typer.Option(help="the first seed")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="how many seeds, one after the other")] = 1,
    scenario: Annotated[str, typer.Option(help="a name (see --list), a file, or `all`")] = "default",
    minutes: Annotated[float | None, typer.Option(min=0.1, help="with faults, instead of the scenario's")] = None,
    faults: Annotated[str | None, typer.Option(help="a mix of faults instead of the scenario's (see --list)")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; one per core if not given")] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="print everything that happened (one seed)")] = False,
    report: Annotated[Path | None, typer.Option(help="write a page with plots of the runs to this file")] = None,
    ray: Annotated[str, typer.Option(help="spread runs over the Ray at this address, or `local`")] = "",
    keep_going: Annotated[bool, typer.Option("--keep-going", help="run all seeds, whatever fails")] = False,
    no_shrink: Annotated[bool, typer.Option("--no-shrink", help="show a failure as it was found")] = False,
    as_json_lines: Annotated[bool, typer.Option("--json", help="one line of JSON per run")] = False,
    list_all: Annotated[bool, typer.Option("--list", help="name scenarios, mixes and faults")] = False,
) -> None:
    """Run simulated hours and check every promise of the design after every step."""
    console = Console(stderr=as_json_lines)
    if list_all:
        _list(Console())
        return
    try:
        chosen = [_chosen(name, minutes, faults, seed) for name in _names(scenario)]
    except ScenarioError as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from None
    work = [(s, n) for s in chosen for n in range(seed, seed + seeds)]
    run = partial(run_one, mix=faults, record=report is not None, timeline=timeline and len(work) == 1)
    if len(work) == 1 and not ray:
        outcomes: Iterator[Outcome] = iter([run(work[0])])
    elif ray:
        outcomes = _on_ray(work, run, ray, console)
    else:
        outcomes = _spread(work, run, jobs)
    seen: list[Outcome] = []
    failed = _follow(outcomes, len(work), console, seen, as_json_lines=as_json_lines, keep_going=keep_going)
    if report is not None:
        _write_report(report, seen, console)
    if timeline and len(work) == 1:
        _print_timeline(seen[0], console)
    if failed is not None:
        options = f"--scenario {shlex.quote(failed.scenario if scenario == 'all' else scenario)}"
        options += f" --minutes {minutes:g}" if minutes is not None else ""
        options += f" --faults {faults}" if faults is not None else ""
        found_in = next(s for s in chosen if s.name == failed.scenario)
        _explain(found_in, failed, console, options, no_shrink=no_shrink)
        raise typer.Exit(1)


def _names(scenario: str) -> list[str]:
    return [name for name in scenario_files() if name != "default"] if scenario == "all" else [scenario]


def _chosen(name: str, minutes: float | None, faults: str | None, seed: int) -> Scenario:
    scenario = load_scenario(name)
    if minutes is not None:
        kept = tuple(f for f in scenario.faults if f.at_ms <= minutes * 60_000)
        scenario = scenario.model_copy(update={"minutes": minutes, "faults": kept})
    draw_faults(scenario, seed, faults)
    checkers_of(scenario)
    return scenario


def _spread(
    work: list[tuple[Scenario, int]], run: Callable[[tuple[Scenario, int]], Outcome], jobs: int | None
) -> Iterator[Outcome]:
    """Yield the outcomes of all runs as they come, computed by several processes."""
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        left = iter(work)
        ahead = _AHEAD * (jobs or 8)
        running: set[Future[Outcome]] = {pool.submit(run, one) for one in islice(left, ahead)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
                running |= {pool.submit(run, one) for one in islice(left, len(done))}
        finally:
            for future in running:
                future.cancel()


def _on_ray(
    work: list[tuple[Scenario, int]], run: Callable[[tuple[Scenario, int]], Outcome], address: str, console: Console
) -> Iterator[Outcome]:
    from simulation.ray_spread import RayUnreachable, spread_on_ray

    try:
        yield from spread_on_ray(work, run, address)
    except RayUnreachable as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from None


def _follow(
    outcomes: Iterator[Outcome],
    total: int,
    console: Console,
    seen: list[Outcome],
    *,
    as_json_lines: bool,
    keep_going: bool,
) -> Outcome | None:
    """Show progress and collect what was `seen`; return the first outcome that failed, after which nothing more is run
    unless it is to `keep_going`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    counts: Counter[str] = Counter()
    failed = None
    virtual_ms, cpu_s = 0, 0.0
    with Progress(*columns, console=console, transient=total == 1) as progress:
        task = progress.add_task("runs", total=total)
        for outcome in outcomes:
            if as_json_lines:
                typer.echo(json.dumps(as_json(outcome), sort_keys=True))
            virtual_ms += outcome.elapsed_ms
            cpu_s += outcome.cpu_s
            counts.update(outcome.counts)
            progress.advance(task)
            seen.append(outcome if outcome.recording is None or _drawn(seen) < RUNS_DRAWN_MAX else _bare(outcome))
            if not outcome.ok:
                failed = failed or outcome
                if not keep_going:
                    break
                first = outcome.violations[0]
                console.print(
                    f"{outcome.scenario}, seed {outcome.seed}: {first.checker}: {first.words}",
                    markup=False,
                    highlight=False,
                )
            elapsed_s = progress.tasks[0].elapsed or 1e-9
            rate = virtual_ms / 60_000 / elapsed_s
            progress.update(task, description=f"{virtual_ms / 3_600_000:.0f} simulated hours, {rate:.0f} per minute")
    if not as_json_lines:
        _print_counts(counts, virtual_ms, console)
    per_minute = virtual_ms / 60_000 / cpu_s if cpu_s else 0.0
    console.print(
        f"{len(seen)} runs, {sum(not o.ok for o in seen)} with a broken promise; {virtual_ms / 3_600_000:.1f} "
        f"simulated hours in {cpu_s:.0f} s of CPU: {per_minute:.0f} per minute of one core",
        highlight=False,
    )
    return failed


def _drawn(seen: list[Outcome]) -> int:
    return sum(outcome.recording is not None for outcome in seen)


def _bare(outcome: Outcome) -> Outcome:
    return replace(outcome, recording=None)


def _write_report(path: Path, seen: list[Outcome], console: Console) -> None:
    try:
        path.write_text(page_of(seen), encoding="utf-8")
    except OSError as error:
        console.print(f"[red]the report cannot be written to `{path}`: {error.strerror}[/red]", highlight=False)
        raise typer.Exit(2) from None


def _print_counts(counts: Counter[str], virtual_ms: int, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("virtual time", *counts):
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(words_of_ms(virtual_ms).partition(".")[0], *(str(n) for n in counts.values()))
    console.print(table)


def _print_timeline(outcome: Outcome, console: Console) -> None:
    for at_ms, words in outcome.timeline:
        console.print(f"{words_of_ms(at_ms):>12}  {words}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"trace {outcome.trace}", highlight=False)


def _explain(scenario: Scenario, failed: Outcome, console: Console, options: str, *, no_shrink: bool) -> None:
    shown = failed
    if not no_shrink:
        with console.status("looking for the shortest run that still fails") as status:
            shown = shrink(
                scenario,
                failed,
                progress=lambda runs, left: status.update(f"shrinking: {runs} runs, {left} faults left"),
            )
    else:
        shown = run_once(scenario, failed.seed, faults=failed.faults, timeline=True)
    told = failure_text(shown, before=len(failed.faults), options=options)
    console.print(told, markup=False, highlight=False, soft_wrap=True)


def _list(console: Console) -> None:
    table = Table("scenario", "what happens", box=None, pad_edge=False)
    for name, path in scenario_files().items():
        table.add_row(name, load_scenario(str(path)).about.split(". ")[0])
    console.print(table)
    console.print(f"\nmixes of faults: {', '.join(MIXES)}\n")
    table = Table("fault", "on", "lasts", "value", "what it does", box=None, pad_edge=False)
    for word, means in WORDS.items():
        value = "" if means.value is None else {int: "whole number", float: "number", str: "text"}[means.value]
        table.add_row(word, means.on, "for" if means.lasts else "", value, means.does)
    console.print(table)


def _end(_signal: int, _frame: FrameType | None) -> None:
    # Leaving in order ends the processes that run seeds, too; otherwise they would go on without anybody.
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    app()
