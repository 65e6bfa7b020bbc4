"""A recorder for redis-py: an application reports its own accesses, hashed and sampled, to the client feed.

    from cachewarden import recorder
    recorder.attach(client)        # CACHEWARDEN_URL, _SERVICE, _TOKEN and _HASH_SECRET say where to

It watches what a client of `redis.Redis` or `redis.asyncio.Redis` and its pipelines ask and get, and one daemon thread
posts a batch every two seconds; nothing else waits. It keeps no key name and no value (`recorder_rows`), never raises
into the application once it is attached, and holds a bounded number of rows whatever happens. It needs the standard
library alone: `pip install --no-deps cachewarden` is enough.

INVARIANT: whatever happens here, a command's answer or exception reaches the application as if nobody were watching.
"""

from __future__ import annotations

import atexit
import functools
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

from cachewarden.feed import FLUSH_MS, KEEP_ALIVE_MS, SPAN_MS_MAX, Instruction, read_instruction, secret_fingerprint
from cachewarden.recorder_rows import CommandRows
from cachewarden.watched_clients import ClientWatch

__all__ = ["Recorder", "attach"]

_log = logging.getLogger("cachewarden.recorder")
_Client = TypeVar("_Client")
_PREFIX: Final = "CACHEWARDEN_"
_VARIABLES: Final = ("URL", "SERVICE", "TOKEN", "HASH_SECRET")
_PENDING_MAX: Final = 8
_BACKOFF_MS: Final = 1_000
_BACKOFF_MAX_MS: Final = 60_000
_REFUSED_PAUSE_MS: Final = 60_000
"""After a refusal that only a person can change (token, secret, service)."""
_ANSWER_BYTES_MAX: Final = 256 * 1024


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


class _Refused(Exception):
    """The endpoint will not have it; `passing` where asking again later may help."""

    def __init__(self, reason: str, *, passing: bool, stale: bool = False) -> None:
        self.passing = passing
        self.stale = stale
        super().__init__(reason)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to whoever it names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Recorder:
    """Reports the accesses of the clients that are attached to it; one for each service and process.

    `url` of the API, e.g. `https://cachewarden.internal:8000`; `service` as in the fleet file; `token` with the scope
    `feed`; `secret` of the key hash, the same as the deployment's. Raises ValueError for what can never work; whatever
    fails later is only said by `status` and the log.
    """

    def __init__(self, url: str, *, service: str, token: str, secret: str | bytes, timeout_s: float = 3.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(f"`{url}` is no address of the API, use http:// or https://")
        if not service or not token:
            raise ValueError("a recorder needs the name of its service and a token")
        key = secret.encode() if isinstance(secret, str) else secret
        if not 1 <= len(key) <= 64:
            raise ValueError(f"the secret of the key hash has 1 to 64 bytes, got {len(key)}")
        self._feed_url = url.rstrip("/") + "/api/v1/cache/feed"
        self._service, self._token, self._timeout_s = service, token, timeout_s
        self._fingerprint = secret_fingerprint(key)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._rows = CommandRows(key, clock_ms=_now_ms, wall_ms=_wall_ms, on_full=self._call, new_lock=threading.Lock)
        self._watch = ClientWatch(self._see, self._see_each)
        self._closed = False
        self.failures = 0
        self._new_life()
        reference = weakref.ref(self)
        atexit.register(_close, reference)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=functools.partial(_forked, reference))

    def _new_life(self) -> None:
        """Begin as after a fork: no thread, no rows, a name of its own; locks that the parent held are not ours."""
        self._id = os.urandom(8).hex()
        self._seq = 0
        self._pending: deque[dict[str, Any]] = deque()
        self._working = threading.Lock()
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._failing_since_ms: int | None = None
        self._not_before_ms = 0
        self._backoff_ms = _BACKOFF_MS
        self._sent_ms = _now_ms()
        self._problem: str | None = "has not asked for instructions yet"
        self._report: Mapping[str, Any] = {}
        self.batches_sent = self.batches_lost = 0

    @classmethod
    def from_environment(cls) -> Recorder:
        """Make one from CACHEWARDEN_URL, CACHEWARDEN_SERVICE, CACHEWARDEN_TOKEN and CACHEWARDEN_HASH_SECRET; raises
        ValueError that names what is missing."""
        given = {name: os.environ.get(_PREFIX + name, "") for name in _VARIABLES}
        missing = [_PREFIX + name for name, value in given.items() if not value]
        if missing:
            raise ValueError(f"the environment lacks {', '.join(missing)}")
        return cls(given["URL"], service=given["SERVICE"], token=given["TOKEN"], secret=given["HASH_SECRET"])

    # --- Clients ---

    def attach(self, client: _Client) -> _Client:
        """Watch a client of redis-py from now on, with the pipelines that it makes later, and return it.

        Raises TypeError for what is no plain client, ValueError for one that is watched by another recorder or does
        not encode its keys as UTF-8.
        """
        self._watch.attach(client)
        self._start()
        return client

    def detach(self, client: _Client) -> _Client:
        """Stop watching a client and return it."""
        return self._watch.detach(client)

    def _see(self, args: tuple[Any, ...], answer: Any) -> None:
        try:
            handler = self._rows.handlers.get(args[0])
            if handler is not None:
                handler(args, answer)
            if self._thread is None:
                self._start()
        except Exception:
            # Answers of modules, nonsense that the server refused to some and not to others: not worth a failure.
            self.failures += 1

    def _see_each(self, commands: list[tuple[Any, ...]] | None, answers: Any) -> None:
        try:
            if commands is not None:
                self._rows.see_each(commands, answers)
            if self._thread is None:
                self._start()
        except Exception:
            self.failures += 1

    def obey(self, instruction: Instruction | None) -> None:
        """Keep what an instruction says until the endpoint gives another one; None: nothing."""
        self._rows.follow(instruction)

    # --- The thread that reports ---

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="cachewarden-recorder", daemon=True)
                self._thread.start()

    def _call(self) -> None:
        self._wake.set()

    def _run(self) -> None:
        while not self._closed:
            try:
                with self._working:
                    self._work(_now_ms())
            except Exception:
                self.failures += 1
                _log.exception("the recorder failed, the application is not concerned")
            self._wake.wait(self._flush_ms / 1000)
            self._wake.clear()

    @property
    def _flush_ms(self) -> int:
        instruction = self._rows.following
        return FLUSH_MS if instruction is None else instruction.flush_ms

    def _work(self, now_ms: int, *, last: bool = False) -> None:
        """Take a batch, send what is pending. `last`: whatever the back-off says."""
        self._take(now_ms)
        if now_ms < self._not_before_ms and not last:
            return
        try:
            if self._rows.following is None:
                if not last:
                    self._follow(self._ask(None))
                return
            while self._pending:
                self._send(self._pending[0])
                self._pending.popleft()
        except _Refused as refused:
            self._refused(refused, now_ms)
        except (OSError, ValueError) as error:
            self._refused(_Refused(f"{type(error).__name__}: {error}", passing=True), now_ms)
        else:
            self._failing_since_ms, self._backoff_ms = None, _BACKOFF_MS
            self._say(None)

    def _take(self, now_ms: int) -> None:
        batch = self._rows.take()
        if batch is None:
            return
        idle = not batch["lookups"] and not batch["at_ms"]
        if idle and now_ms - self._sent_ms < KEEP_ALIVE_MS:
            return
        self._seq += 1
        self._pending.append({"service_name": self._service, "recorder": self._id, "seq": self._seq, **batch})
        while len(self._pending) > _PENDING_MAX or now_ms - self._pending[0]["from_ms"] > SPAN_MS_MAX:
            self._pending.popleft()
            self.batches_lost += 1
            if not self._pending:
                return

    def _send(self, batch: dict[str, Any]) -> None:
        self._sent_ms = _now_ms()
        answer = self._ask({**batch, "sent_ms": self._sent_ms})
        self.batches_sent += 1
        self._report = answer.get("report") or {}
        self._follow(answer)

    def _follow(self, answer: Mapping[str, Any]) -> None:
        instruction = read_instruction(answer.get("instruction"))
        if instruction.secret_fingerprint != self._fingerprint:
            raise _Refused(
                f"the secret differs from the deployment's: fingerprint `{self._fingerprint}` here, "
                f"`{instruction.secret_fingerprint}` there, set {_PREFIX}HASH_SECRET to the content of `hash_secret` "
                "in the state directory",
                passing=False,
            )
        self._rows.follow(instruction)

    def _refused(self, refused: _Refused, now_ms: int) -> None:
        self._say(str(refused))
        if refused.passing:
            since_ms = self._failing_since_ms = self._failing_since_ms or now_ms
            self._not_before_ms = now_ms + self._backoff_ms
            self._backoff_ms = min(2 * self._backoff_ms, _BACKOFF_MAX_MS)
            if now_ms - since_ms < _BACKOFF_MAX_MS:
                return
        else:
            self._not_before_ms = now_ms + (self._flush_ms if refused.stale else _REFUSED_PAUSE_MS)
        # Nobody listens: nothing is kept until somebody does.
        self._rows.follow(None)
        self.batches_lost += len(self._pending)
        self._pending.clear()

    def _say(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _log.warning("accesses of `%s` are not reported: %s", self._service, problem)
        self._problem = problem

    def _ask(self, batch: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """POST a batch, or GET the instruction; raises _Refused, OSError or ValueError."""
        address = self._feed_url if batch is not None else f"{self._feed_url}/{quote(self._service, safe='')}"
        body = None if batch is None else json.dumps(batch, separators=(",", ":")).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        # The scheme was checked when the recorder was made.
        request = urllib.request.Request(address, data=body, headers=headers)  # noqa: S310
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                answer = json.loads(response.read(_ANSWER_BYTES_MAX))
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error.code, error.read(_ANSWER_BYTES_MAX)) from None
        if not isinstance(answer, dict):
            raise ValueError("the answer is no JSON object")  # noqa: TRY004 - input from the wire, no wrong call
        return answer

    # --- For the application ---

    def status(self) -> dict[str, Any]:
        """Return what the recorder does now: `problem` None where it reports, what the endpoint last said, counts."""
        return {
            "service": self._service,
            "problem": self._problem,
            "report": dict(self._report),
            "lookups": self._rows.lookups,
            "batches_sent": self.batches_sent,
            "batches_lost": self.batches_lost,
            "batches_pending": len(self._pending),
            "rows_thinned": self._rows.thinned,
            "failures": self.failures,
        }

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Send what there is now; returns whether nothing is left. Blocks: in asyncio use `asyncio.to_thread`."""
        if not self._working.acquire(timeout=timeout_s):
            return False
        try:
            self._work(_now_ms())
            return not self._pending and self._problem is None
        finally:
            self._working.release()

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what there is, for at most about `timeout_s`, and report nothing any more."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        if self._working.acquire(timeout=timeout_s):
            try:
                self._timeout_s = min(self._timeout_s, timeout_s)
                if self._problem is None:
                    self._work(_now_ms(), last=True)
            except Exception:
                self.failures += 1
            finally:
                self._working.release()
        self._rows.follow(None)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _after_fork(self) -> None:
        self._rows.forget()
        self._new_life()


def _refusal(status: int, body: bytes) -> _Refused:
    try:
        reason = str(json.loads(body)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        reason = "no reason given"
    passing = status in (408, 425, 429) or status >= 500
    return _Refused(f"HTTP {status}: {reason}", passing=passing, stale=status == 409)


def _close(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder.close(1.0)


def _forked(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder._after_fork()


_shared: Recorder | None = None
_sharing = threading.Lock()


def attach(client: _Client, recorder: Recorder | None = None) -> _Client:
    """Watch a client with `recorder`, by default the one that the environment describes, and return it.

    Where the environment describes none, that is said once in the log and the client is left as it is.
    """
    global _shared  # noqa: PLW0603 - one for the process, as the environment is
    if recorder is None:
        with _sharing:
            if _shared is None:
                try:
                    _shared = Recorder.from_environment()
                except ValueError as error:
                    _log.warning("accesses are not reported: %s", error)
                    return client
            recorder = _shared
    return recorder.attach(client)
