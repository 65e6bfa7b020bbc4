"""Bearer tokens: who a caller is and what he may do.

Tokens are 256 random bits, so a plain SHA-256 of each is stored; comparing is constant-time over all tokens, so that
neither a hash nor a name can be guessed from the time it takes. It never stores, logs or shows a token after it was
made. INVARIANT: a caller without a valid token has no scopes, and a token file that cannot be read admits nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cachewarden.approval import PLANNER
from cachewarden.errors import ConfigurationError

__all__ = [
    "RESERVED_SUBJECTS",
    "SCOPES",
    "Caller",
    "Scope",
    "TokenEntry",
    "TokenStore",
    "create_token",
    "ensure_first_token",
    "list_tokens",
    "revoke_token",
]

Scope = Literal["read", "operate", "approve", "admin", "feed"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

TOKENS_FILE: Final = "tokens.json"
_FIRST_FILE: Final = "admin-token"
_PREFIX: Final = "cw_"
_MAX_TOKEN_CHARS: Final = 200
_NAME: Final = r"^[a-z][a-z0-9_.-]{0,62}$"

RESERVED_SUBJECTS: Final = frozenset({PLANNER})
"""Authors of the agents' own proposals."""


class TokenEntry(BaseModel):
    """One token as it is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME, description="stands in the audit trail as the caller")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    created_at: str
    subject: str | None = Field(
        None,
        pattern=_NAME,
        description="who holds it; several tokens of one subject are one identity. The name where it is not given",
    )

    @field_validator("name", "subject")
    @classmethod
    def _nobody_of_ours(cls, value: str | None) -> str | None:
        if value in RESERVED_SUBJECTS:
            raise ValueError(f"`{value}` is an agent of ours, choose another name")
        return value


class _TokenFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: tuple[TokenEntry, ...]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of the token, what it permits, and who holds it."""

    name: str
    scopes: frozenset[str]
    subject: str = ""

    @property
    def identity(self) -> str:
        """Who counts as the author of what is proposed, and as the one who approves: the holder, not the token."""
        return self.subject or self.name

    def may(self, scope: Scope) -> bool:
        """`admin` may everything; every token may read, but one that only feeds: it lies on application servers."""
        if scope == "read" and not self.only_feeds:
            return True
        return scope in self.scopes or "admin" in self.scopes

    @property
    def only_feeds(self) -> bool:
        return self.scopes == {"feed"}


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: Path) -> tuple[TokenEntry, ...]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"tokens cannot be read: {error}", path=str(path)) from None
    try:
        entries = _TokenFile.model_validate(json.loads(text)).tokens
    except json.JSONDecodeError as error:
        message = f"tokens are not readable as JSON: {error.msg}, restore it, or remove it to have one made anew"
        raise ConfigurationError(message, path=str(path), line=error.lineno) from None
    except ValidationError as problems:
        first = problems.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise ConfigurationError(f"tokens cannot be used, `{where}`: {first['msg'].lower()}", path=str(path)) from None
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"tokens need names of their own, twice: {', '.join(twice)}", path=str(path))
    return entries


def _write_private(path: Path, text: str) -> None:
    """Write whole or not at all, readable by the owner only from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, entries: tuple[TokenEntry, ...]) -> None:
    document: dict[str, Any] = {"tokens": [entry.model_dump(mode="json") for entry in entries]}
    _write_private(path, json.dumps(document, indent=2) + "\n")


def list_tokens(state_dir: Path) -> tuple[TokenEntry, ...]:
    """Return all tokens as stored (hashes only); raises ConfigurationError for a file that cannot be used."""
    return _read(state_dir / TOKENS_FILE)


def create_token(state_dir: Path, name: str, scopes: tuple[Scope, ...], subject: str | None = None) -> str:
    """Make a token and return it, the only time that it is shown; raises ConfigurationError for a bad or used name or
    scope. `subject` says who holds it, where that is not its name: nobody approves what he proposed with another of
    his tokens."""
    path = state_dir / TOKENS_FILE
    entries = _read(path)
    if any(entry.name == name for entry in entries):
        raise ConfigurationError(
            f"there is a token named `{name}` already, revoke it first or choose another name", path=str(path)
        )
    token = _PREFIX + secrets.token_urlsafe(32)
    try:
        entry = TokenEntry(
            name=name,
            sha256=_hash(token),
            scopes=tuple(sorted(set(scopes))),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            subject=subject,
        )
    except ValidationError:
        raise ConfigurationError(
            f"a token needs a name (and subject) of small letters, digits, `_`, `.`, `-`, not that of an agent "
            f"({', '.join(sorted(RESERVED_SUBJECTS))}), and scopes out of {', '.join(SCOPES)}, got `{name[:80]}`"
            f"{f' of `{subject[:80]}`' if subject else ''} with `{', '.join(str(s)[:20] for s in scopes)}`"
        ) from None
    _write(path, (*entries, entry))
    return token


def revoke_token(state_dir: Path, name: str) -> bool:
    """Remove a token at once for every process that reads the file; returns whether there was one."""
    path = state_dir / TOKENS_FILE
    entries = _read(path)
    kept = tuple(entry for entry in entries if entry.name != name)
    if len(kept) == len(entries):
        return False
    _write(path, kept)
    return True


def ensure_first_token(state_dir: Path) -> tuple[bool, Path]:
    """Make the first token, `admin`, if there is none at all; returns (made now, file that holds it in plain, mode
    0600).

    The file is for the operator to read once and delete; only the hash counts from then on.
    """
    plain = state_dir / _FIRST_FILE
    if list_tokens(state_dir):
        return False, plain
    _write_private(plain, create_token(state_dir, "admin", ("admin",)) + "\n")
    return True, plain


class TokenStore:
    """The tokens in force; the file is read again when it changes, so that a revocation needs no restart.

    A token that was found in it is believed for `believed_s` without another look, since each look gives the
    interpreter's lock away; an unknown one is looked up at once.
    """

    def __init__(self, state_dir: Path, *, believed_s: float = 0.0) -> None:
        self._path = state_dir / TOKENS_FILE
        self._believed_s = believed_s
        self._looked_s = -math.inf
        self._stamp: tuple[int, int, int] | None = None
        self._entries: tuple[TokenEntry, ...] = ()
        self._callers: dict[str, Caller] = {}

    def _current(self) -> tuple[TokenEntry, ...]:
        try:
            stat = self._path.stat()
        except OSError:
            self._stamp, self._entries, self._callers = None, (), {}
            return ()
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if stamp != self._stamp:
            self._entries, self._callers = (), {}
            self._entries = _read(self._path)
            self._callers = {e.name: Caller(e.name, frozenset(e.scopes), e.subject or "") for e in self._entries}
            self._stamp = stamp
        return self._entries

    def authenticate(self, authorization: str | None) -> Caller | None:
        """Return the caller of an `Authorization: Bearer ...` header, or None.

        Raises ConfigurationError where the token file cannot be used; then nobody is admitted.
        """
        scheme, _, token = (authorization or "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > _MAX_TOKEN_CHARS:
            return None
        given = _hash(token)
        now_s = time.monotonic()
        if now_s - self._looked_s < self._believed_s:
            caller = self._caller(self._entries, given)
            if caller is not None:
                return caller
        entries = self._current()
        self._looked_s = now_s
        return self._caller(entries, given)

    def _caller(self, entries: tuple[TokenEntry, ...], given: str) -> Caller | None:
        found: Caller | None = None
        for entry in entries:
            if hmac.compare_digest(entry.sha256, given):
                found = self._callers.get(entry.name)
        return found
