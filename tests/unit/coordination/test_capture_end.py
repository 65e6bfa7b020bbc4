"""A capture ends when it is told to, even where a cancellation gets lost on the way."""

from __future__ import annotations

import asyncio

from coordination.redis_capture import _end


async def test_a_task_that_loses_its_first_cancellation_is_ended_all_the_same():
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                lost += 1
                if lost > 1:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await _end(task)
    assert task.cancelled()
    assert lost == 2


async def test_a_task_that_has_failed_is_ended_without_noise():
    async def broken() -> None:
        raise ValueError("gone")

    task = asyncio.create_task(broken())
    await asyncio.sleep(0)
    await _end(task)
    assert task.done()
