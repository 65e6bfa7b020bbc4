"""Tokens: made once, stored hashed, revoked at once."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cachewarden.errors import ConfigurationError
from serve.security import TokenStore, create_token, ensure_first_token, list_tokens, revoke_token


def test_the_first_start_makes_one_admin_token_in_a_private_file(tmp_path: Path):
    created, path = ensure_first_token(tmp_path / "state")
    assert created
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text().strip()
    caller = TokenStore(tmp_path / "state").authenticate(f"Bearer {token}")
    assert caller is not None
    assert caller.may("approve")
    assert ensure_first_token(tmp_path / "state") == (False, path)
    assert path.read_text().strip() == token


def test_only_the_hash_is_kept_in_a_private_file(tmp_path: Path):
    token = create_token(tmp_path, "ci", ("operate",))
    text = (tmp_path / "tokens.json").read_text()
    assert token not in text
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600
    assert [(e.name, e.scopes) for e in list_tokens(tmp_path)] == [("ci", ("operate",))]


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        (("read",), {"read"}),
        (("operate",), {"read", "operate"}),
        (("approve",), {"read", "approve"}),
        (("admin",), {"read", "operate", "approve", "admin", "feed"}),
        (("feed",), {"feed"}),
        (("feed", "read"), {"read", "feed"}),
    ],
)
def test_a_scope_permits_what_it_says_and_reading_except_that_of_a_recorder(tmp_path: Path, scopes: tuple, may: set):
    caller = TokenStore(tmp_path).authenticate(f"bearer {create_token(tmp_path, 'x', scopes)}")
    assert {s for s in ("read", "operate", "approve", "admin", "feed") if caller.may(s)} == may


def test_a_revoked_token_and_a_new_one_are_seen_without_a_restart(tmp_path: Path):
    store = TokenStore(tmp_path)
    assert store.authenticate("Bearer cw_nothing") is None
    token = create_token(tmp_path, "a", ("read",))
    assert store.authenticate(f"Bearer {token}").name == "a"
    assert revoke_token(tmp_path, "a")
    assert store.authenticate(f"Bearer {token}") is None
    assert not revoke_token(tmp_path, "a")


@pytest.mark.parametrize(("name", "scopes"), [("Bad Name", ("read",)), ("a", ()), ("a", ("root",)), ("", ("read",))])
def test_a_bad_name_or_scope_is_refused_with_the_way_out(tmp_path: Path, name: str, scopes: tuple):
    with pytest.raises(ConfigurationError, match="read, operate, approve, admin"):
        create_token(tmp_path, name, scopes)
    assert list_tokens(tmp_path) == ()


def test_a_name_stands_once(tmp_path: Path):
    create_token(tmp_path, "a", ("read",))
    with pytest.raises(ConfigurationError, match="already"):
        create_token(tmp_path, "a", ("admin",))


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "", '{"tokens": [{"name": "a"}]}', '{"tokens": [], "more": 1}', "\x00"],
)
def test_a_malformed_file_is_a_clear_error_and_is_left_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "tokens.json"
    path.write_text(text)
    for action in (
        lambda: list_tokens(tmp_path),
        lambda: ensure_first_token(tmp_path),
        lambda: TokenStore(tmp_path).authenticate("Bearer x"),
    ):
        with pytest.raises(ConfigurationError, match="tokens"):
            action()
    assert path.read_text() == text


def test_two_tokens_of_one_name_are_a_malformed_file(tmp_path: Path):
    create_token(tmp_path, "a", ("read",))
    path = tmp_path / "tokens.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({"tokens": document["tokens"] * 2}))
    with pytest.raises(ConfigurationError, match="twice"):
        list_tokens(tmp_path)
