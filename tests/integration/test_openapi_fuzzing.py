"""What the published OpenAPI says against what the API does: generated requests, right and wrong, on real agents."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter

import httpx
import pytest
import uvicorn

from cachewarden.messages import Mode
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import SCOPES, TokenStore, create_token
from tests.integration.world import MIB, CacheSpec, World, traffic, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SEED = 42
EXAMPLES = 6
"""Generated requests for each operation, on top of the examples and boundaries of its schema."""

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
NEVER_RIGHT = {
    "GET /api/v1/cache/plans/{plan_id}",
    "POST /api/v1/cache/feed",
    "GET /api/v1/cache/warm/{job_id}",
    "GET /api/v1/cache/warm/{job_id}/events",
    "GET /api/v1/cache/warm/{job_id}/outcomes",
    "POST /api/v1/cache/warm/{job_id}/cancel",
    *(f"POST /api/v1/cache/plans/{{plan_id}}/{verb}" for verb in ("approve", "edit", "reject", "rollback")),
}
"""Needs the name of a plan or job that there is, or the fingerprint of the deployment's secret: nobody guesses them."""
QUIET = {"mode": Mode.APPROVE, "capture": False, "feed": True, "minimum_memory_bytes": 2 * MIB}


@contextlib.asynccontextmanager
async def served(world: World, agents, state_dir):
    """Yield the address of the API on a socket, and a client that may do everything."""
    token = create_token(state_dir, "fuzz", SCOPES)
    backend = AgentBackend(world.plan, agents)
    app = create_app(backend, TokenStore(state_dir), wait_s=0.1)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or serving.done(), 20, "a listening API")
        port = server.servers[0].sockets[0].getsockname()[1]
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=30) as client:

            async def decides():
                return (await client.post("/api/v1/cache/optimize", json={"service_name": "shop"})).status_code == 200

            await until(decides, 30, "an API that decides")
            yield client
    finally:
        server.should_exit = True
        await serving
        await backend.close()


async def fuzz(client: httpx.AsyncClient, folder) -> tuple[int, str, list[dict]]:
    """Run schemathesis; return its exit code, what it printed, and its events."""
    events = folder / "events.ndjson"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        "run",
        f"{client.base_url}/openapi.json",
        f"--header=Authorization: {client.headers['Authorization']}",
        f"--seed={SEED}",
        f"--max-examples={EXAMPLES}",
        f"--checks={','.join(CHECKS)}",
        "--phases=examples,coverage,fuzzing",
        "--generation-database=none",
        "--suppress-health-check=all",
        "--continue-on-failure",
        "--no-shrink",
        "--request-timeout=20",
        "--warnings=off",
        "--no-color",
        "--report=ndjson",
        f"--report-ndjson-path={events}",
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(100):
            printed, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    return process.returncode or 0, printed.decode(), found


def answers_of(events: list[dict]) -> dict[str, Counter]:
    """Return how often each operation was answered with which status."""
    found: dict[str, Counter] = {}
    for event in events:
        recorder = event.get("ScenarioFinished", {}).get("recorder", {})
        for interaction in recorder.get("interactions", {}).values():
            status = (interaction.get("response") or {}).get("status_code")
            found.setdefault(recorder["label"], Counter())[status] += 1
    return found


@pytest.mark.timeout(240)
async def test_no_generated_request_gets_an_answer_that_the_published_interface_does_not_name(tmp_path):
    spec = CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop", rate_per_s=100.0), wishes=QUIET)
    async with (
        World(tmp_path, spec, requests_per_s_per_token=100_000.0) as world,
        world.agents() as agents,
        served(world, agents, tmp_path) as client,
    ):
        code, printed, events = await fuzz(client, tmp_path)
        assert code == 0, printed
        answers = answers_of(events)
        published = (await client.get("/openapi.json")).json()["paths"]
        labels = {f"{method.upper()} {path}" for path, item in published.items() for method in item}
        assert answers.keys() == labels, printed
        statuses = sum(answers.values(), Counter())
        assert None not in statuses, "a request was not answered"
        assert not [s for s in statuses if s >= 500], statuses
        # A run that only ever was refused would have looked at no answer of the handlers.
        assert {label for label, of in answers.items() if not of[200]} <= NEVER_RIGHT
        assert statuses[422] > 100
        # Whatever was asked: the journal is whole, and no cache was touched.
        assert (await world.verified()).ok
        assert world.config_sets() == 0
