"""The API on Ray Serve. The only module of `serve` that imports Ray.

`make_app` is called in each replica and returns the ASGI application; where agents, caches and journal are is its
business. What listens
where: Serve's proxy on the host and port given; replicas and Ray's own ports as `docs/OPERATIONS.md` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray import serve as ray_serve

__all__ = ["APPLICATION", "serve_api", "stop_api"]

APPLICATION = "cachewarden"


def serve_api(make_app: Callable[[], Any], *, host: str, port: int, replicas: int = 1) -> None:
    """Start Serve's proxy and the API, and wait until it answers; raises RuntimeError when it cannot be deployed."""

    # Serve tells a builder from an application by its being a plain function.
    def build() -> Any:
        return make_app()

    ray_serve.start(
        http_options={"host": host, "port": port, "location": "HeadOnly"}, logging_config={"enable_access_log": False}
    )
    deployment = ray_serve.deployment(
        ray_serve.ingress(build)(),
        name="api",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=200,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=10,
    )
    ray_serve.run(deployment.bind(), name=APPLICATION, route_prefix="/", logging_config={"enable_access_log": False})


def stop_api() -> None:
    """Take the API and Serve down."""
    ray_serve.shutdown()
