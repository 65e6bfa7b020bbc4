"""What the owner of a constitution is told."""

from __future__ import annotations

from cachewarden.policy.report import explain
from tests.unit.policy.builders import SHIPPED, SHIPPED_PATH


def test_a_constitution_in_order_is_told_principle_by_principle():
    ok, lines = explain(SHIPPED_PATH)
    assert ok
    assert SHIPPED.digest in lines[1]
    assert all(any(principle.id in line for line in lines) for principle in SHIPPED.principles)


def test_a_broken_one_is_told_with_file_and_line(tmp_path):
    path = tmp_path / "constitution.yaml"
    path.write_text(SHIPPED_PATH.read_text().replace("size(ttl_patterns_undeclared) == 0", "size(ttl_patterns) == 0"))
    ok, lines = explain(path)
    assert not ok
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}:")
    assert "`ttl_patterns` is not a fact" in lines[0]
