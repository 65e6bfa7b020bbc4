"""The one place that knows how hot loops are compiled.

A compiled function stays an ordinary typed function for readers and type checkers. It never takes the interpreter's
lock while it runs, so several what-ifs may run side by side in threads.

INVARIANT: a compiled function gives the same integers as its Python source, which tests can reach as `.py_func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

__all__ = ["compiled", "compiled_loop", "inlined"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` compiled to machine code on first call and cached on disk beside its module."""
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def compiled_loop(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` compiled without reference counts; it must not allocate arrays.

    Counting the references of every array that is handed to a helper costs more than half of the replay's time.
    """
    return cast("Callable[P, R]", numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function))


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` compiled into each of its callers; for the helpers of a `compiled_loop`."""
    return cast(
        "Callable[P, R]", numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, inline="always")(function)
    )
