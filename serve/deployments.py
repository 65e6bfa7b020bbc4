"""The API on Ray Serve. The only module of `serve` that imports Ray.

`make_app` is called in each replica and returns the ASGI application, which leaves `X-Request-ID` in answers to Serve;
where agents, caches and journal are is its business. What listens where: Serve's ingress on the host and port given,
the replicas on the same host; Ray's own ports as `docs/OPERATIONS.md` says. A second `serve_api` is a rolling update:
new replicas first, then the old ones drain.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ray import serve as ray_serve
from ray.exceptions import RayError

from cachewarden.errors import OperatingError

__all__ = ["APPLICATION", "Scale", "serve_api", "stop_api"]

APPLICATION = "cachewarden"

_SWITCH_INTERVAL_S: Final = 0.0005

_YOUNG_OBJECTS: Final = 10_000
"""New containers between two collections; of the 700 by default, most belong to requests that have not ended yet."""

_ONGOING_MAX: Final = 20_000
"""Of one replica, out of reach on purpose: who is let in is decided by `admission.py`, which has our own form."""


def _settle_interpreter() -> None:
    """Keep the event loop from waiting for the interpreter itself.

    Ray's own threads share the interpreter with the loop, and one that is at it may keep it for 5 ms, by default; and
    the garbage collector would go through all that was imported again and again, and through the requests in progress
    at every few of them.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas: `replicas`, or from there up to `replicas_max` as many as the load needs."""

    replicas: int = 1
    replicas_max: int | None = None
    ongoing_target: float = 16.0
    """Requests in progress for each replica that autoscaling aims at."""


def serve_api(make_app: Callable[[], Any], *, host: str, port: int, scale: Scale = Scale(), release: str = "") -> None:
    """Start Serve's ingress and the API, or replace its replicas one by one, and wait until it answers.

    Raises OperatingError when the ingress does not come up, RuntimeError when the API cannot be deployed. Another
    `release` than before replaces all replicas: Serve itself sees only changes of the code that it was given.
    """

    # Serve tells a builder from an application by its being a plain function.
    def build() -> Any:
        app = make_app()
        _settle_interpreter()
        return app

    # Serve makes the text of an access line before it finds that nobody wants it.
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port, "keep_alive_timeout_s": 90},
            logging_config=quiet,
        )
    except TimeoutError as error:
        raise OperatingError(
            f"Ray Serve's ingress did not come up within the 60 s that Serve waits ({error}): on a busy machine start "
            "again when it is less so, or run without Ray Serve (`--no-ray`)"
        ) from error
    except RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__]
        raise OperatingError(
            f"Ray Serve's ingress did not come up: {cause[-1].strip()} ({type(error).__name__}); its logs are in the "
            "folder `serve` of Ray's session, and `--no-ray` runs without it"
        ) from error
    number: dict[str, Any] = {"num_replicas": scale.replicas}
    if scale.replicas_max is not None and scale.replicas_max > scale.replicas:
        number = {
            "autoscaling_config": {
                "min_replicas": scale.replicas,
                "max_replicas": scale.replicas_max,
                "target_ongoing_requests": scale.ongoing_target,
            }
        }
    deployment = ray_serve.deployment(
        ray_serve.ingress(build)(),
        name="api",
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": {"CACHEWARDEN_RELEASE": release}}},
        max_ongoing_requests=_ONGOING_MAX,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=10,
        **number,
    )
    ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/", logging_config=quiet)


def stop_api() -> None:
    """Take the API and Serve down, its ingress included."""
    ray_serve.shutdown()
