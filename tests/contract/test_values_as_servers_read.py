"""Values as another program may write them: ours is what the server makes of them, or it takes them as little as we do."""

from __future__ import annotations

import pytest
import redis

from cachewarden.knobs import as_server_reads
from tests.contract.real_servers import ENGINES, RealServer

pytestmark = pytest.mark.integration
VALUES = {
    "maxmemory": (
        "64mb",
        "64MB",
        "1Gb",
        "1g",
        "3k",
        "5KB",
        "7b",
        "100",
        "0064",
        "0",
        "-64mb",
        "-5",
        "64 mb",
        "64tb",
        "1.5gb",
        "mb",
    ),
    "maxmemory-samples": ("5", "05", "+5", "5.0", " 5", "five", "10"),
    "lfu-decay-time": ("3", "03", "0"),
    "maxmemory-policy": ("ALLKEYS-LFU", "Volatile-Ttl", "allkeys lfu", "lru"),
    "lazyfree-lazy-eviction": ("YES", "No", "true", "1"),
}


@pytest.fixture(scope="module", params=ENGINES)
def server(request, tmp_path_factory):
    server = RealServer(request.param, tmp_path_factory.mktemp("values"))
    server.start()
    yield server
    server.kill()


@pytest.mark.parametrize(("knob", "value"), [(knob, value) for knob, values in VALUES.items() for value in values])
def test_a_value_is_read_as_the_server_reads_it(server, knob, value):
    try:
        server.admin.config_set(knob, value)
    except redis.ResponseError:
        assert as_server_reads(knob, value) is None
        return
    [shown] = server.admin.config_get(knob).values()
    assert as_server_reads(knob, value) == (shown.decode() if isinstance(shown, bytes) else shown)
