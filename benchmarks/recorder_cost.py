"""What does the recorder cost an application? Watched commands against unwatched ones, interleaved in the same run.

Run from the repository root: `python -m benchmarks.recorder_cost [--commands N] [--rounds N]`. First the recorder's own
time, on a client that answers at once, for keys outside the sample and for keys in it; then GETs, MGETs and pipelines
of redis-py on a real Valkey. Rounds are short and the best one counts, since every
disturbance only adds. Reports go to a port
where nobody listens: that is the recorder's worst case, not its usual one.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

import redis

from cachewarden.feed import Instruction, patterns_id, secret_fingerprint
from cachewarden.recorder import Recorder
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions

SECRET = b"benchmark"


class InstantClient:
    """A client in form only: it answers at once, so that what is left is the recorder."""

    connection_pool = None

    def execute_command(self, *_: Any, **__: Any) -> bytes:
        return b"x" * 100

    def pipeline(self) -> None:
        return None

    def get_encoder(self) -> Any:
        return redis.connection.Encoder("utf-8", "strict", decode_responses=False)


def best_us(works: list[Callable[[], object]], rounds: int, per_round: int) -> list[float]:
    """Return the best time of each work, microseconds per command; rounds alternate between them."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            start = perf_counter()
            work()
            best[number] = min(best[number], (perf_counter() - start) / per_round * 1e6)
    return best


def recorder_at(rate: float) -> Recorder:
    """Return a recorder that keeps keys at `rate` and whose reports go nowhere."""
    recorder = Recorder("http://127.0.0.1:9", service="shop", token="none", secret=SECRET, timeout_s=0.2)
    patterns = ("page:", "cart:", "user:profile:")
    recorder.obey(
        Instruction(
            service="shop",
            spatial_rate=rate,
            patterns=patterns,
            secret_fingerprint=secret_fingerprint(SECRET),
            patterns_id=patterns_id(patterns),
        )
    )
    return recorder


def own_cost(commands: int, rounds: int) -> None:
    """Print what the recorder adds to one command."""
    keys = [f"page:{number}" for number in range(commands)]

    def asking(client: Any) -> Callable[[], None]:
        def ask() -> None:
            for key in keys:
                client.execute_command("GET", key)

        return ask

    recorders = [recorder_at(2.0**-24), recorder_at(1.0)]
    clients: list[Any] = [InstantClient(), *(recorder.attach(InstantClient()) for recorder in recorders)]
    for recorder, rate in zip(recorders, (2.0**-24, 1.0), strict=True):
        assert recorder.status()["lookups"] == 0, rate
    plain, outside, inside = best_us([asking(client) for client in clients], rounds, commands)
    print(
        f"recorder's own  key outside the sample {outside - plain:5.2f} us  key in the sample {inside - plain:5.2f} us"
    )
    for recorder in recorders:
        recorder.close(0.1)


def on_a_server(commands: int, rounds: int) -> None:
    """Print watched commands of redis-py over unwatched ones."""
    home = ServerHome()
    try:
        server = EmbeddedServer(ServerOptions(name="shop", maxmemory_bytes=64 << 20), home)
        server.start()
        recorder = recorder_at(1.0 / 64)
        plain, watched = redis.Redis.from_url(server.url), recorder.attach(redis.Redis.from_url(server.url))
        keys = [f"page:{number}" for number in range(commands)]
        plain.mset(dict.fromkeys(keys[::2], b"x" * 100))

        def gets(client: redis.Redis) -> None:
            # Few at a time: a round has to fit between two disturbances, and each of these waits for the server.
            for key in keys[::10]:
                client.get(key)

        def mgets(client: redis.Redis) -> None:
            for start in range(0, commands, 50):
                client.mget(keys[start : start + 50])

        def pipelines(client: redis.Redis) -> None:
            for start in range(0, commands, 50):
                with client.pipeline(transaction=False) as pipe:
                    for key in keys[start : start + 50]:
                        pipe.get(key)
                    pipe.execute()

        for name, work, done in (
            ("GET", gets, commands // 10),
            ("MGET of 50", mgets, commands),
            ("pipeline of 50", pipelines, commands),
        ):
            before, after = best_us([lambda w=work: w(plain), lambda w=work: w(watched)], rounds, done)
            print(f"{name:15} unwatched {before:7.2f} us  watched {after:7.2f} us  ratio {after / before:.3f}")
        recorder.close(0.1)
        plain.close()
        watched.close()
    finally:
        home.close()


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=500)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    own_cost(arguments.commands, arguments.rounds)
    on_a_server(arguments.commands, arguments.rounds)


if __name__ == "__main__":
    main()
