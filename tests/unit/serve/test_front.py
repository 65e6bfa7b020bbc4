"""What a request looks like to Serve once the front has seen it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serve.front import DECISION_PATH, Front, middlewares
from serve.optimize_routes import decision_route

MARK = (b"x-request-disconnect-disabled", b"?1")


def handed_on(**scope: Any) -> dict[str, Any]:
    """Return the scope as the application behind the front gets it."""
    seen: list[dict[str, Any]] = []

    async def behind(given: Any, _receive: Any, _send: Any) -> None:
        seen.append(given)

    async def nothing(*_: Any) -> Any:
        return {}

    asyncio.run(
        Front(behind)(
            {"type": "http", "method": "POST", "path": DECISION_PATH, "headers": [], **scope}, nothing, nothing
        )
    )
    return seen[0]


def test_the_front_knows_the_path_that_the_route_has():
    assert decision_route().path == DECISION_PATH


def test_a_decision_is_not_to_be_broken_off_and_has_an_id():
    headers = dict(handed_on()["headers"])
    assert headers[MARK[0]] == MARK[1]
    assert len(headers[b"x-request-id"]) == 36


def test_the_id_that_the_client_gave_is_kept():
    given = (b"x-request-id", b"mine-1")
    assert [pair for pair in handed_on(headers=[given])["headers"] if pair[0] == given[0]] == [given]


def test_a_client_cannot_ask_that_its_decision_be_broken_off():
    headers = handed_on(headers=[(MARK[0], b"?0")])["headers"]
    assert [pair for pair in headers if pair[0] == MARK[0]] == [MARK]


def test_a_client_cannot_name_a_time_after_which_its_decision_is_broken_off():
    assert b"x-request-timeout-seconds" not in dict(
        handed_on(headers=[(b"x-request-timeout-seconds", b"0.001")])["headers"]
    )


def test_an_empty_id_is_none():
    ids = [value for name, value in handed_on(headers=[(b"x-request-id", b"")])["headers"] if name == b"x-request-id"]
    assert len(ids) == 1
    assert len(ids[0]) == 36


@pytest.mark.parametrize(
    "other",
    [{"path": "/api/v1/cache/warm"}, {"method": "GET"}, {"type": "websocket"}, {"type": "lifespan"}],
    ids=["another path", "another method", "a socket", "the start"],
)
def test_everything_else_goes_on_untouched(other: dict[str, str]):
    assert handed_on(**other)["headers"] == []


def test_serve_is_given_the_front_and_nothing_else():
    assert [one.cls for one in middlewares()] == [Front]
