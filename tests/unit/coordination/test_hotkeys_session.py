"""HOTKEYS of Redis 8.6: replies as its documentation prints them, and sessions that are bounded and not somebody else's.

The server is a script here: no Redis 8.6 is at hand. What it answers is what the documentation and the source say.
"""

from __future__ import annotations

import pytest

from cachewarden.cachemodel.hot_keys import hot_by_server, severity_of
from cachewarden.cachemodel.shards import hash_key
from cachewarden.errors import TargetRefused, TargetUnavailable
from coordination.monitor_lines import PatternIndex
from coordination.redis_hotkeys_session import DURATION_S, HotKeySessions, fields_of, hot_keys_of
from coordination.redis_wire import Refusal

SECRET = b"secret"
DOCUMENTED = [
    b"tracking-active", 1, b"sample-ratio", 1, b"selected-slots", [], b"all-commands-all-slots-us", 220,
    b"net-bytes-all-commands-all-slots", 200, b"collection-start-time-unix-ms", 1769420604522,
    b"collection-duration-ms", 6408, b"total-cpu-time-user-ms", 3, b"total-cpu-time-sys-ms", 11,
    b"by-cpu-time-us", [b"x", 104, b"y", 98, b"z", 18], b"by-net-bytes", [b"x", 120, b"y", 60],
]  # fmt: skip
"""The example of the documentation of HOTKEYS GET, with bytes beside."""


def read(reply, patterns=("y",), commands=100):
    fields = fields_of(reply)
    return hot_keys_of(
        fields, hash_secret=SECRET, patterns=PatternIndex(patterns), own_prefix=b"cachewarden:", commands=commands
    )


@pytest.mark.parametrize(
    "reply",
    [DOCUMENTED, [DOCUMENTED], [dict(zip(DOCUMENTED[::2], DOCUMENTED[1::2], strict=True))]],
    ids=["flat", "nested", "mapping"],
)
def test_the_documented_reply_is_understood_in_each_of_its_shapes(reply):
    found = read(reply)
    assert (found.cpu_us, found.net_bytes, found.window_ms, found.sample_ratio) == (220, 200, 6408, 1)
    x, y, z = (hash_key(SECRET, name) for name in (b"x", b"y", b"z"))
    assert found.keys == ((x, None, 104, 120), (y, "y", 98, 60), (z, None, 18, 0))


def test_no_name_of_a_key_is_in_what_leaves():
    reply = [*DOCUMENTED[:-1], [b"a-plain-name", 120]]
    assert "plain" not in repr(read(reply))


def test_our_own_keys_are_left_out():
    reply = [*DOCUMENTED[:-3], [], b"by-net-bytes", [b"cachewarden:fence", 9, b"x", 3]]
    assert len(read(reply).keys) == 1


@pytest.mark.parametrize("reply", [None, [], [None], [[]]])
def test_no_session_is_none(reply):
    assert fields_of(reply) is None


@pytest.mark.parametrize("reply", [[1, 2, 3], b"OK", 7])
def test_another_shape_is_refused(reply):
    with pytest.raises(ValueError, match="another shape"):
        fields_of(reply)


@pytest.mark.parametrize("field", [b"all-commands-all-slots-us", b"collection-duration-ms", b"sample-ratio"])
def test_a_field_that_is_missing_is_named(field):
    at = DOCUMENTED.index(field)
    with pytest.raises(ValueError, match=field.decode()):
        read(DOCUMENTED[:at] + DOCUMENTED[at + 2 :])


def test_shares_are_of_all_commands_and_scaled_by_the_sample():
    found = hot_by_server(read(DOCUMENTED, commands=1_000), clients=10)
    assert [round(key.share.value, 2) for key in found.keys] == [0.6, 0.3, 0.0]
    assert round(found.keys[2].cpu_share.value, 3) == round(18 / 220, 3)
    assert severity_of(found.keys[2].share, found.keys[2].cpu_share) == "medium"
    few = hot_by_server(read(DOCUMENTED, commands=20), clients=10).keys[0].share
    many = hot_by_server(read(DOCUMENTED, commands=20_000), clients=10).keys[0].share
    assert many.low - few.low > 0.05
    unknown = hot_by_server(read(DOCUMENTED, commands=0), clients=10).keys[0].share
    assert (unknown.low, unknown.high) == (0.0, 1.0)


# --- Sessions -------------------------------------------------------------------------------------------------------


class Server:
    """Has one session at a time, as Redis 8.6 has; `at_ms` is its clock."""

    service = "shop"

    def __init__(self, *, known=True):
        self.known, self.at_ms, self.session, self.sent, self.gone = known, 1_000_000, None, [], False

    async def ask(self, commands):
        return [self._answer(command) for command in commands]

    async def call(self, *command):
        reply = self._answer(command)
        if isinstance(reply, Refusal):
            raise TargetRefused("shop", reply.command, reply.reason)
        return reply

    def _answer(self, command):
        if self.gone:
            raise TargetUnavailable("shop", "gone")
        if command[0] == "COMMAND":
            return [[b"hotkeys"]] if self.known else [None]
        self.sent.append(command[1])
        return getattr(self, "_" + command[1].lower())(command)

    def _start(self, command):
        if self._active():
            return Refusal("HOTKEYS START", "hotkey tracking session already in progress")
        assert command[2:] == ("METRICS", 2, "CPU", "NET", "COUNT", 20, "DURATION", DURATION_S, "SAMPLE", command[-1])
        self.session = [self.at_ms, self.at_ms + DURATION_S * 1000, command[-1]]
        return b"OK"

    def _active(self):
        return self.session is not None and self.at_ms < self.session[1]

    def _get(self, _):
        if self.session is None:
            return [None]
        started, ends, ratio = self.session
        fields = dict(zip(DOCUMENTED[::2], DOCUMENTED[1::2], strict=True))
        told = {
            b"tracking-active": int(self._active()),
            b"collection-start-time-unix-ms": started,
            b"collection-duration-ms": min(self.at_ms, ends) - started,
            b"sample-ratio": ratio,
        }
        return [[part for pair in {**fields, **told}.items() for part in pair]]

    def _stop(self, _):
        self.session[1] = min(self.session[1], self.at_ms)
        return b"OK"

    def _reset(self, _):
        if self._active():
            return Refusal("HOTKEYS RESET", "hotkey tracking session in progress, stop tracking first")
        self.session = None
        return b"OK"


def sessions(server, share=0.01):
    return HotKeySessions(server, hash_secret=SECRET, patterns=(), own_prefix=b"cachewarden:", server_share=share)


INFO = {"run_id": "a", "instantaneous_ops_per_sec": "50000"}


async def test_a_session_is_begun_by_one_look_and_fetched_by_a_later_one():
    server = Server()
    ours = sessions(server)
    await ours.turn(INFO, server.at_ms, permitted=True)
    assert ours.newest is None
    # 1 % of a core pays for 5,000 sampled commands a second.
    assert server.session[2] == 10
    server.at_ms += 3_000
    await ours.turn(INFO, server.at_ms, permitted=True)
    assert ours.newest is None, "it still counts"
    server.at_ms += 8_000
    await ours.turn(INFO, server.at_ms, permitted=True)
    assert ours.newest.window_ms == DURATION_S * 1000
    assert ours.newest.commands == 500_000
    assert server.sent.count("RESET") == 1
    assert server.sent.count("START") == 2


async def test_without_the_owners_permission_or_the_command_nothing_is_sent():
    server = Server()
    await sessions(server).turn(INFO, server.at_ms, permitted=False)
    assert server.sent == []
    old = Server(known=False)
    await sessions(old).turn(INFO, old.at_ms, permitted=True)
    assert old.sent == []


@pytest.mark.parametrize("later_ms", [1_000, 60_000], ids=["running", "ended"])
async def test_a_session_of_somebody_else_is_neither_stopped_nor_reset(later_ms):
    server = Server()
    server.session = [server.at_ms, server.at_ms + 10_000, 1]
    server.at_ms += later_ms
    with pytest.raises(TargetRefused, match="somebody else"):
        await sessions(server).turn(INFO, server.at_ms, permitted=True)
    assert set(server.sent) == {"GET"}


async def test_one_that_ended_an_hour_ago_was_forgotten():
    server = Server()
    server.session = [server.at_ms, server.at_ms + 10_000, 1]
    server.at_ms += 3_700_000
    await sessions(server).turn(INFO, server.at_ms, permitted=True)
    assert server.session[0] == server.at_ms


async def test_after_a_restart_of_the_server_what_was_told_before_is_forgotten():
    server = Server()
    ours = sessions(server)
    await ours.turn(INFO, server.at_ms, permitted=True)
    server.at_ms += 11_000
    await ours.turn(INFO, server.at_ms, permitted=True)
    assert ours.newest is not None
    server.session = None
    await ours.turn({**INFO, "run_id": "b"}, server.at_ms, permitted=True)
    assert ours.newest is None
    assert server.session is not None


async def test_the_end_frees_what_is_ours_and_only_that():
    server = Server()
    ours = sessions(server)
    await ours.turn(INFO, server.at_ms, permitted=True)
    server.session[0] -= 5
    await ours.end()
    assert server.session is not None, "its start is another one, so it is somebody else's"
    other = Server()
    mine = sessions(other)
    await mine.turn(INFO, other.at_ms, permitted=True)
    await mine.end()
    assert other.session is None
    await mine.end()
    gone = Server()
    last = sessions(gone)
    await last.turn(INFO, gone.at_ms, permitted=True)
    gone.gone = True
    await last.end()
