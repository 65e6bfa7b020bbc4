"""How a client of redis-py is watched: its class is replaced by a subclass that hands on each command and its answer.

For `redis.Redis` and `redis.asyncio.Redis`, redis-py 5 to 8, with the pipelines and transactions that they make. The
object's class changes and not its methods: closures on an object make cycles, and a client that waits for the garbage
collector keeps its connections. It knows no redis-py by import and decides nothing. INVARIANT: a command's answer or
exception reaches the caller as if nobody were watching.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, TypeVar

__all__ = ["ClientWatch"]

_Client = TypeVar("_Client")
_Command = tuple[Any, ...]
_MARK: Final = "_cachewarden_watch"
_NEEDED: Final = ("execute_command", "pipeline", "connection_pool", "get_encoder")


class ClientWatch:
    """`see` gets each command and its answer, `see_each` those of a pipeline (None where redis-py keeps them otherwise
    than known). Neither may raise."""

    def __init__(
        self, see: Callable[[_Command, Any], None], see_each: Callable[[list[_Command] | None, Any], None]
    ) -> None:
        self._see, self._see_each = see, see_each
        self._classes: dict[type, type] = {}

    def attach(self, client: _Client) -> _Client:
        """Watch a client, and the pipelines that it makes later; returns it. Raises TypeError for what is no plain
        client, ValueError for one that is watched elsewhere or does not encode its keys as UTF-8."""
        kind = type(client)
        known = getattr(kind, _MARK, None)
        if known is self:
            return client
        if known is not None:
            raise ValueError("the client is attached to another recorder, detach it first")
        if hasattr(client, "command_stack") or not all(hasattr(client, name) for name in _NEEDED):
            raise TypeError(f"`{kind.__name__}` is no client of redis.Redis or redis.asyncio.Redis")
        made: Any = client
        encoding = str(made.get_encoder().encoding).lower().replace("-", "")
        if encoding not in ("utf8", "ascii"):
            raise ValueError(f"the client encodes keys as `{encoding}`, a recorder understands utf-8")
        client.__class__ = self._watched(kind, self._client_methods)
        return client

    def detach(self, client: _Client) -> _Client:
        """Stop watching a client and return it."""
        kind = type(client)
        if getattr(kind, _MARK, None) is self:
            client.__class__ = kind.__bases__[0]
        return client

    def _watched(self, base: type, methods: Callable[[Any], dict[str, Any]]) -> type:
        made = self._classes.get(base)
        if made is None:
            body = {**methods(base), _MARK: self, "__module__": base.__module__, "__doc__": base.__doc__}
            made = self._classes[base] = type(base.__name__, (base,), body)
        return made

    def _client_methods(self, base: Any) -> dict[str, Any]:
        execute, make_pipeline, see = base.execute_command, base.pipeline, self._see

        def execute_command(client: Any, *args: Any, **options: Any) -> Any:
            answer = execute(client, *args, **options)
            see(args, answer)
            return answer

        async def execute_command_async(client: Any, *args: Any, **options: Any) -> Any:
            answer = await execute(client, *args, **options)
            see(args, answer)
            return answer

        def pipeline(client: Any, *args: Any, **options: Any) -> Any:
            pipe = make_pipeline(client, *args, **options)
            # A pipeline of another make than redis-py's goes unwatched rather than wrong.
            if hasattr(pipe, "command_stack") and hasattr(pipe, "immediate_execute_command"):
                pipe.__class__ = self._watched(type(pipe), self._pipeline_methods)
            return pipe

        asynchronous = inspect.iscoroutinefunction(execute)
        return {"execute_command": execute_command_async if asynchronous else execute_command, "pipeline": pipeline}

    def _pipeline_methods(self, base: Any) -> dict[str, Any]:
        # A pipeline's `execute_command` only queues, or hands on to `immediate_execute_command` after a WATCH.
        run, immediately, see, see_each = base.execute, base.immediate_execute_command, self._see, self._see_each

        def execute(pipe: Any, *args: Any, **options: Any) -> Any:
            commands = _commands_of(pipe)
            answers = run(pipe, *args, **options)
            see_each(commands, answers)
            return answers

        def immediate_execute_command(pipe: Any, *args: Any, **options: Any) -> Any:
            answer = immediately(pipe, *args, **options)
            see(args, answer)
            return answer

        async def execute_async(pipe: Any, *args: Any, **options: Any) -> Any:
            commands = _commands_of(pipe)
            answers = await run(pipe, *args, **options)
            see_each(commands, answers)
            return answers

        async def immediate_execute_command_async(pipe: Any, *args: Any, **options: Any) -> Any:
            answer = await immediately(pipe, *args, **options)
            see(args, answer)
            return answer

        if inspect.iscoroutinefunction(run):
            return {"execute": execute_async, "immediate_execute_command": immediate_execute_command_async}
        return {"execute": execute, "immediate_execute_command": immediate_execute_command}


def _commands_of(pipe: Any) -> list[_Command] | None:
    # `execute` empties the stack, so it is copied before.
    try:
        return [command[0] for command in pipe.command_stack]
    except (AttributeError, TypeError, IndexError, KeyError):
        return None
