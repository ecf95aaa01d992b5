"""What a replica does again and again."""

from __future__ import annotations

import asyncio

import pytest

from inferflux.api.rounds import Rounds
from inferflux.broker.errors import BrokerUnavailable

FEW_S = 0.001


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), ValueError("a bug")])
async def test_a_round_that_fails_does_not_end_the_rounds(error: Exception) -> None:
    num_begun, thrice = 0, asyncio.Event()

    async def act() -> None:
        nonlocal num_begun
        num_begun += 1
        if num_begun == 3:
            thrice.set()
        raise error

    rounds = Rounds("test", act, FEW_S)
    rounds.start()
    await asyncio.wait_for(thrice.wait(), 30)
    await rounds.close()


async def test_a_round_that_runs_is_broken_off_and_none_follows() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def act() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    rounds = Rounds("test", act, FEW_S)
    rounds.start()
    await asyncio.wait_for(begun.wait(), 30)
    await rounds.close()
    assert ended.is_set()
    assert "test" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_what_never_started_can_be_closed() -> None:
    async def act() -> None:
        raise AssertionError("nobody asked for a round")

    await Rounds("test", act, FEW_S).close()
