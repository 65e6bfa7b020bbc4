"""What a running service must do to be called compliant, asked over HTTP like any other caller.

It only reads, but for two requests that must be refused. INVARIANT: a service that does not answer has kept nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import httpx

__all__ = ["live_checks"]

_TIMEOUT_S = 10.0
_OPTIMIZE = "/api/v1/cache/optimize"
_METRICS = (
    "acgs_constitutional_compliance{",
    "acgs_constitutional_hash_valid{",
    "acgs_constitutional_violations_total{",
    "acgs_http_requests_total{",
    "acgs_service_info{",
)

Outcome = tuple[bool, str]


def _headers_verified(response: httpx.Response, specified: str) -> Outcome:
    found = {name: response.headers.get(name, "") for name in ("X-Constitutional-Hash", "X-Constitutional-Compliance")}
    body = response.json()
    told = body.get("constitutional_hash", body.get("error", {}).get("constitutional_hash"))
    kept = list(found.values()) == [specified, "verified"] and told == specified
    return kept, f"{response.status_code}, headers {'/'.join(found.values())}, body {told}"


def _refused(response: httpx.Response) -> Outcome:
    error = response.json().get("error", {})
    kept = response.status_code == 403 and error.get("code") == "CONSTITUTIONAL_VIOLATION"
    return kept, f"{response.status_code} {error.get('code')}"


def _counted(text: str) -> float:
    """Return how many violations the service has counted."""
    lines = [line for line in text.splitlines() if line.startswith("acgs_constitutional_violations_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def live_checks(url: str, token: str, specified: str) -> list[tuple[str, bool, str]]:
    """Return name, kept and what was seen of each check; `specified` is the hash that the service must have."""
    headers = {"Authorization": f"Bearer {token}"}
    wrong = specified[::-1]
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:

        def post(body: Mapping[str, object], **more: str) -> httpx.Response:
            return client.post(_OPTIMIZE, json=body, headers=more)

        def health() -> Outcome:
            response = client.get("/health")
            kept, seen = _headers_verified(response, specified)
            return kept and response.json().get("status") == "healthy", f"{response.json().get('status')}, {seen}"

        def metrics() -> Outcome:
            response = client.get("/api/v1/cache/metrics")
            kept, seen = _headers_verified(response, specified)
            rate = response.json().get("constitutional_compliance_rate")
            return kept and response.status_code == 200 and rate in (None, 1.0), f"compliance rate {rate}, {seen}"

        def wrong_hash_refused_and_counted() -> Outcome:
            before = _counted(client.get("/metrics").text)
            answers = (
                post({"service_name": "nobody", "constitutional_hash": wrong}),
                post({"service_name": "nobody"}, **{"X-Constitutional-Hash": wrong}),
            )
            after = _counted(client.get("/metrics").text)
            outcomes = [_refused(answer) for answer in answers]
            told = f"body {outcomes[0][1]}, header {outcomes[1][1]}, violations counted {before:g} to {after:g}"
            # Behind several replicas the count before and after may be those of different ones.
            return all(kept for kept, _ in outcomes) and after > 0, told

        def right_hash_passes() -> Outcome:
            # Refused for its service alone: the hash was looked at before.
            error = post({"service_name": "nobody", "constitutional_hash": specified}).json().get("error", {})
            kept = error.get("status_code") == 404 and error.get("constitutional_hash") == specified
            return kept, f"{error.get('status_code')} {error.get('message')}"

        def prometheus() -> Outcome:
            text = client.get("/metrics").text
            missing = [name.rstrip("{") for name in _METRICS if f"\n{name}" not in f"\n{text}"]
            hashed = f'constitutional_hash="{specified}"' in text
            return (
                not missing and hashed,
                f"missing: {', '.join(missing) or 'none'}, hash in acgs_service_info: {hashed}",
            )

        def strangers() -> Outcome:
            response = httpx.get(f"{url.rstrip('/')}/api/v1/cache/metrics", timeout=_TIMEOUT_S)
            return response.status_code == 401, f"without a token: {response.status_code}"

        def audit() -> Outcome:
            body = client.get("/api/v1/audit/verify").json()
            return body.get("ok") is True and body.get("height", 0) > 0, f"{body.get('height')} records verified"

        checks: dict[str, Callable[[], Outcome]] = {
            "live: /health is healthy and verified": health,
            "live: the compliance rate is 1 where anything was decided": metrics,
            "live: a wrong hash is refused and counted": wrong_hash_refused_and_counted,
            "live: the right hash is let through": right_hash_passes,
            "live: /metrics has ACGS's names": prometheus,
            "live: strangers are turned away": strangers,
            "live: the audit chain verifies": audit,
        }
        return [(name, *_asked(check)) for name, check in checks.items()]


def _asked(check: Callable[[], Outcome]) -> Outcome:
    try:
        return check()
    except (httpx.HTTPError, ValueError, AttributeError) as error:
        return False, f"no usable answer: {type(error).__name__}: {error}"
