"""Which reads of a replay miss, row by row: what a watcher of a cache sees of its clients' loads.

The replay proper only counts. It decides nothing. INVARIANT: the state afterwards is that of a replay of the same rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction_kernel import run
from cachewarden.cachemodel.eviction_state import REG, IntArray, IntList, Seed
from cachewarden.cachemodel.jit import compiled_loop

__all__ = ["run_noting_misses"]


@compiled_loop
def run_noting_misses(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    rng: Seed,
    c: IntArray,
    time_ms: IntArray,
    key: IntList,
    op: npt.NDArray[np.uint8],
    size_bytes: IntList,
    ttl_ms: IntArray,
    missed: npt.NDArray[np.bool_],
) -> None:
    """Replay these rows and say which of them are reads that miss."""
    for i in range(len(time_ms)):
        misses = register[REG.reads] - register[REG.hits]
        one = slice(i, i + 1)
        run(table, expires, lists, register, rng, c, time_ms[one], key[one], op[one], size_bytes[one], ttl_ms[one])
        missed[i] = register[REG.reads] - register[REG.hits] > misses
