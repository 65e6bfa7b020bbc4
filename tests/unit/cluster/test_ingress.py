"""What is put into the environment before Ray starts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from cluster import ingress
from cluster.ingress import ALWAYS, FAST, SOCKET_CHARS_MAX, connections_max, ingress_environment, prepare


@pytest.fixture
def binary(tmp_path: Path) -> str:
    path = tmp_path / "haproxy"
    path.touch(mode=0o755)
    return str(path)


def test_the_fast_ingress_is_chosen_where_its_binary_is(binary: str):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary}
    chosen = prepare(environment)
    assert chosen.fast
    assert {**ALWAYS, **FAST}.items() <= environment.items()


@pytest.mark.parametrize(
    "set_by_hand", [{"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}, {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "1"}]
)
def test_where_the_application_has_a_thread_of_its_own_there_is_no_front(binary: str, set_by_hand: dict[str, str]):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary, **set_by_hand}
    prepare(environment)
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" not in environment
    environment |= {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "ours:own"}
    prepare(environment)
    assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "ours:own"


def test_without_the_binary_the_default_proxy_serves_and_it_is_said(monkeypatch):
    monkeypatch.setattr(ingress.importlib.util, "find_spec", lambda _: None)
    environment: dict[str, str] = {}
    chosen = prepare(environment)
    assert not chosen.fast
    assert "missing" in chosen.reason
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED" not in environment


def test_a_binary_that_cannot_be_run_counts_as_none(tmp_path: Path):
    chosen = prepare({"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "nothing")})
    assert not chosen.fast


def test_what_the_operator_has_set_is_left_alone(binary: str):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary, "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "5"}
    prepare(environment)
    assert environment["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "5"


def test_the_operator_may_switch_the_fast_ingress_off(binary: str):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary, "RAY_SERVE_ENABLE_HA_PROXY": "0"}
    assert not prepare(environment).fast


def test_the_files_of_haproxy_lie_in_the_folder_of_the_run_unless_sockets_could_not(binary: str, tmp_path: Path):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary}
    prepare(environment, Path("/tmp/h"))
    assert environment["RAY_SERVE_HAPROXY_SOCKET_PATH"] == "/tmp/h/admin.sock"
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary}
    prepare(environment, Path("/tmp") / ("h" * SOCKET_CHARS_MAX))
    assert "RAY_SERVE_HAPROXY_SOCKET_PATH" not in environment


@pytest.mark.parametrize(("files", "connections"), [(1_024, 369), (20_000, 7_960), (1_000_000, 12_000), (100, 256)])
def test_no_more_connections_are_promised_than_files_may_be_open(files: int, connections: int):
    assert connections_max(files) == connections


def test_the_same_variables_are_given_for_images_and_clusters():
    assert ingress_environment(fast=False) == dict(ALWAYS)
    assert FAST.items() <= ingress_environment(fast=True).items()


def test_haproxy_keeps_its_statistics_to_this_machine(tmp_path: Path):
    configuration = tmp_path / "haproxy.cfg"
    configuration.write_text("frontend x\n    bind 10.0.0.1:80\nlisten stats\n  bind *:8404\n  bind :9101\n")
    said = tmp_path / "said"
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\necho "$@" > {said}\n')
    program.chmod(0o755)
    environment = ingress_environment(fast=True, binary=str(program))
    started = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    subprocess.run([started, "-db", "-f", str(configuration), "-x", "s"], check=True, env=environment)
    assert said.read_text() == f"-db -f {configuration} -x s\n"
    lines = configuration.read_text().splitlines()
    assert lines == [
        "frontend x",
        "    bind 10.0.0.1:80",
        "listen stats",
        "  bind 127.0.0.1:8404",
        "  bind 127.0.0.1:9101",
    ]


def test_an_haproxy_that_the_operator_has_named_is_run_as_it_is(binary: str):
    environment = {"RAY_SERVE_HAPROXY_BINARY_PATH": binary}
    prepare(environment)
    assert environment["RAY_SERVE_HAPROXY_BINARY_PATH"] == binary
