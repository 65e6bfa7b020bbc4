"""YAML with a memory for lines, so that an error can say where it is.

Only plain data is loaded (no tags, no objects); duplicate keys are refused, since the second one would silently win.
"""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from cachewarden.errors import ConfigurationError

__all__ = ["load_yaml", "validate_yaml"]

M = TypeVar("M", bound=BaseModel)
Path = tuple[str | int, ...]
_PROBLEMS_MAX = 5


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                raise yaml.MarkedYAMLError(problem=f"`{key}` stands twice", problem_mark=key_node.start_mark)
            result[key] = _walk(value_node, (*path, key), lines)
            lines[(*path, key)] = key_node.start_mark.line + 1
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_walk(child, (*path, i), lines) for i, child in enumerate(node.value)]
    return yaml.SafeLoader("").construct_object(node)


def load_yaml(text: str, source: str, error: type[ConfigurationError]) -> tuple[Any, dict[Path, int]]:
    """Return the data and the line (from 1) of each path in it; raises `error` with file and line."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[Path, int] = {}
        return (None if node is None else _walk(node, (), lines)), lines
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else None
        raise error(f"not readable as YAML: {problem.problem}", path=source, line=line) from None
    except yaml.YAMLError as problem:
        raise error(f"not readable as YAML: {problem}", path=source) from None


def _line_of(path: Path, lines: dict[Path, int]) -> int | None:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


def _told(problem: Any) -> str:
    where = ".".join(str(p) for p in problem["loc"]) or "document"
    if problem["type"] == "extra_forbidden":
        return f"`{where}`: is not a known name here"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem.get("input"), (dict, list)) else f", got `{str(problem.get('input'))[:80]}`"
    return f"`{where}`: {message[:1].lower()}{message[1:]}{given}"


def validate_yaml(model: type[M], text: str, source: str, error: type[ConfigurationError]) -> M:
    """Return the validated document; raises `error` with the line and the words of the first problem, then of a few
    others."""
    data, lines = load_yaml(text, source, error)
    if not isinstance(data, dict):
        raise error("must be a mapping of names to values", path=source, line=1)
    try:
        return model.model_validate(data)
    except ValidationError as problems:
        first, *others = ((_line_of(p["loc"], lines), _told(p)) for p in problems.errors())
        more = "".join(f"; line {line or 1}: {told}" for line, told in others[: _PROBLEMS_MAX - 1])
        left = len(others) + 1 - _PROBLEMS_MAX
        more += f" (and {left} more)" if left > 0 else ""
        raise error(f"{first[1]}{more}", path=source, line=first[0]) from None
