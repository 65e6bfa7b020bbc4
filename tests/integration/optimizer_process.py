"""A whole deployment in a process of its own, so that a test can stop it where it stands, wake it up, or kill it.

    python -m tests.integration.optimizer_process PLAN ORDER

PLAN is a pickled plan. Whenever ORDER, a pickled order, is there, it is taken away and given to this deployment's
actuator.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path
from typing import Any

from cluster.local import LocalRuntime


def read(path: Path) -> Any:
    """Return what was pickled, None while it is not there."""
    return pickle.loads(path.read_bytes()) if path.exists() else None


def take(path: Path) -> Any:
    """Return what was pickled and take it away, None while it is not there."""
    found = read(path)
    if found is not None:
        path.unlink()
    return found


async def main(plan: Any, order_path: Path) -> None:
    async with LocalRuntime(plan) as runtime:
        while True:
            while (order := take(order_path)) is None:
                await asyncio.sleep(0.05)
            await runtime.send("test", "actuator", order)


if __name__ == "__main__":
    asyncio.run(main(read(Path(sys.argv[1])), Path(sys.argv[2])))
