"""A server that answers as ACGS's Constitutional AI, Integrity Service, Coordinator and Blackboard do, traps included.

Written from the description of their wire, not from their code. `Lookalike.fault` says how each call goes: `ok`, `error`
(500, as a middleware of ACGS's gives on each request), `tenant` (403 in the tenant error's shape), `wrong_hash`,
`slow`, `garbage`, `cut_after` (does what was asked and closes the connection without an answer), `redirect`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, Field

H = "cdd01ef066bc6cf2"
WRONG = "0123456789abcdef"
EventType = Literal[
    "policy_creation", "policy_modification", "policy_deletion", "agent_evolution", "constitutional_validation",
    "access_control", "cryptographic_operation", "system_configuration", "user_authentication", "governance_decision",
    "rollback_operation", "emergency_action",
]  # fmt: skip
HARMFUL = (
    "harmful",
    "dangerous",
    "malicious",
    "toxic",
    "violent",
    "illegal",
    "unethical",
    "discriminatory",
    "hateful",
    "threatening",
    "abusive",
)
GOOD = (
    "ethical",
    "fair",
    "transparent",
    "accountable",
    "responsible",
    "constitutional",
    "compliant",
    "legitimate",
    "beneficial",
    "safe",
)


class AuditEvent(BaseModel):
    event_type: EventType
    service_name: str
    action: str
    resource_type: str
    description: str
    user_id: str | None = None
    resource_id: str | None = None
    metadata: dict[str, Any] = {}
    severity: Literal["low", "medium", "high", "critical"] = "medium"
    session_id: str | None = None
    ip_address: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


class Validation(BaseModel):
    content: str
    context: dict[str, Any]
    principles: list[str] = []
    require_formal_proof: bool = False


class Registration(BaseModel):
    agent_id: str
    agent_type: Literal[
        "orchestrator", "domain_specialist", "worker", "ethics_agent", "legal_agent", "operational_agent"
    ]
    status: Literal["available", "busy", "offline", "error"]
    current_tasks: list[str] = []
    capacity: int = 5
    performance_score: float = Field(1.0, ge=0, le=1)


class Knowledge(BaseModel):
    knowledge_type: Literal[
        "constitutional_principle", "legal_precedent", "ethical_guideline", "operational_procedure", "risk_assessment",
        "stakeholder_feedback", "governance_decision", "policy_recommendation", "compliance_requirement",
    ]  # fmt: skip
    content: dict[str, Any]
    source_agent: str
    confidence_level: float = Field(ge=0, le=1)
    entry_id: str | None = None
    constitutional_hash: str | None = None
    tags: list[str] = []
    references: list[str] = []


class Lookalike:
    """All services under one address. `events` are what the Integrity Service took, `headers` those of the last call."""

    def __init__(self) -> None:
        self.fault: Callable[[], str] = lambda: "ok"
        self.program = "multi-agent-coordinator"
        self.events: list[AuditEvent] = []
        self.asked: list[Validation] = []
        self.agents: dict[str, dict[str, Any]] = {}
        self.knowledge: dict[str, dict[str, Any]] = {}
        self.headers: dict[str, str] = {}
        self.calls = 0
        self.url = ""
        self._hanging = asyncio.Event()
        self.app = self._build()

    def _build(self) -> FastAPI:
        app = FastAPI()

        @app.middleware("http")
        async def trap(request: Request, go_on: Any) -> Response:
            self.calls += 1
            self.headers = dict(request.headers)
            fault = self.fault()
            if fault == "error":
                # "Plain 500", as ACGS's constitutional middleware gives for every request.
                return PlainTextResponse("Internal Server Error", 500)
            if fault == "tenant":
                body = {"error": "tenant_access_denied", "message": "no tenant", "constitutional_hash": H}
                return JSONResponse(body, 403)
            if fault == "redirect":
                return Response(status_code=307, headers={"Location": self.url + "/elsewhere"})
            if fault == "slow":
                await self._hanging.wait()
            if fault == "garbage":
                return PlainTextResponse("<html>it works</html>", 200, headers={"X-Constitutional-Hash": H})
            response = await go_on(request)
            response.headers["X-Constitutional-Hash"] = WRONG if fault == "wrong_hash" else H
            if fault == "cut_after":
                # Done, but the one who asked never learns.
                raise ConnectionAbortedError
            return response

        self._integrity(app)
        self._constitutional(app)
        self._coordinator(app)
        self._blackboard(app)
        return app

    def _integrity(self, app: FastAPI) -> None:
        @app.post("/api/v1/persistent-audit/events", status_code=201)
        async def take(event: AuditEvent) -> dict[str, Any]:
            self.events.append(event)
            told = event.model_dump(exclude={"session_id", "ip_address", "user_agent", "request_id"})
            now = datetime.now(UTC).isoformat()
            own = {"event_id": str(uuid.uuid4()), "block_id": "block_placeholder", "timestamp": now}
            return {**told, **own, "constitutional_hash": H}

    def _constitutional(self, app: FastAPI) -> None:
        @app.post("/api/v1/constitutional/validate")
        async def validate(asked: Validation) -> dict[str, Any]:
            self.asked.append(asked)
            text = asked.content.lower()
            score, violated, why = 0.7, [], []
            if any(word in text for word in HARMFUL):
                score, violated, why = score - 0.6, ["non-maleficence"], ["harmful words"]
            if any(word in text for word in GOOD):
                score += 0.2
            score += min(0.2, len(asked.content) / 5000)
            if asked.context.get("high_risk"):
                score -= 0.1
                if score < 0.8:
                    violated = violated or ["risk"]
            score = max(0.0, min(1.0, score))
            return {
                "compliant": not violated and score >= 0.7, "score": score, "violated_principles": violated,
                "reasoning": why, "recommendations": [], "constitutional_hash": H,
                "metadata": {"cache_hit": False, "validation_time_us": 12, "method": "fast_cached"},
            }  # fmt: skip

    def _coordinator(self, app: FastAPI) -> None:
        @app.get("/health")
        async def health() -> dict[str, Any]:
            return {"status": "healthy", "service": self.program, "constitutional_hash": H}

        @app.post("/api/v1/agents/register")
        async def register(agent: Registration) -> dict[str, Any]:
            self.agents[agent.agent_id] = agent.model_dump()
            return {"success": True, "agent_id": agent.agent_id}

        @app.put("/api/v1/agents/{agent_id}/status")
        async def set_status(agent_id: str, status: str) -> Response:
            if agent_id not in self.agents:
                return JSONResponse({"detail": "Agent not found"}, 404)
            self.agents[agent_id] |= {"status": status, "greetings": self.agents[agent_id].get("greetings", 0) + 1}
            return JSONResponse({"success": True})

    def _blackboard(self, app: FastAPI) -> None:
        @app.post("/api/v1/knowledge")
        async def add(item: Knowledge) -> Response:
            entry_id = item.entry_id or str(uuid.uuid4())
            if item.constitutional_hash not in (None, H) or "harmful" in str(item.content):
                detail = {"success": False, "entry_id": entry_id, "violations": ["hash"], "compliance_score": 0.0}
                return JSONResponse({"detail": detail}, 400)
            self.knowledge[entry_id] = item.model_dump()
            return JSONResponse({"success": True, "entry_id": entry_id, "validation": {"is_compliant": True}})

        @app.put("/api/v1/knowledge/{entry_id}")
        async def change(entry_id: str, update: dict[str, Any]) -> Response:
            if entry_id not in self.knowledge:
                return JSONResponse({"detail": "Knowledge entry not found"}, 404)
            self.knowledge[entry_id] |= update
            return JSONResponse({"success": True, "entry_id": entry_id})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(lookalike: Lookalike, port: int | None = None) -> Iterator[Lookalike]:
    """Serve on 127.0.0.1 in a thread of its own until left; the state outlives it, so it can be served again."""
    port = _free_port() if port is None else port
    config = uvicorn.Config(
        lookalike.app, host="127.0.0.1", port=port, log_level="critical", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    ready = threading.Event()
    while not server.started and thread.is_alive():
        ready.wait(0.01)
    lookalike.url = f"http://127.0.0.1:{port}"
    try:
        yield lookalike
    finally:
        server.should_exit = True
        thread.join(10)
