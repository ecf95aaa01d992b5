"""What is reserved, used and given back, on a real server: by two workers at once, and by workers that are killed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import msgspec
import pytest
from harness.fleet import Fleet, deadline, fleet_settings
from harness.nats import NatsServers

from inferflux.broker.errors import Code
from inferflux.broker.subjects import Series
from inferflux.broker.wire.policies import Limits, TenantLimit
from inferflux.broker.wire.requests import Frame
from inferflux.config.settings import WorkerSettings
from inferflux.registry.limits import LimitStore
from inferflux.registry.quota import unpack
from inferflux.registry.store import PolicyStore
from inferflux.registry.usage import UsageBook, UsageRow

pytestmark = pytest.mark.integration

_numbers = itertools.count()


class Books:
    """A fleet whose requests belong to a tenant of its own, with limits of its own."""

    def __init__(self, fleet: Fleet, tenant: str) -> None:
        self.fleet = fleet
        self.tenant = tenant

    async def limit(self, **limit: int) -> None:
        """From now on, everywhere."""

        def changed(now: Limits) -> Limits:
            return msgspec.structs.replace(now, tenants={**now.tenants, self.tenant: TenantLimit(**limit)})

        await LimitStore(PolicyStore(self.fleet.client)).change(changed)
        wanted = {name: bound or None for name, bound in limit.items()}
        async with deadline(20, "workers follow the limits"):
            for worker in self.fleet.workers:
                book = worker.worker._control.limits
                while any(getattr(book.of_tenant(self.tenant), name) != bound for name, bound in wanted.items()):
                    await asyncio.sleep(0.005)

    async def minutes(self) -> list[tuple[int, ...]]:
        """Requests and tokens of each minute in which anything was counted."""
        found = await self.fleet.client.counters(Series.LIMIT, ("tenant", self.tenant, None))
        return [unpack(value, 2) for value in found.values()]

    async def spent(self) -> int:
        """Tokens of the month's budget."""
        return sum((await self.fleet.client.counters(Series.BUDGET, (self.tenant, None))).values())

    async def usage(self) -> list[UsageRow]:
        return await UsageBook(self.fleet.client).rows(tenant=self.tenant, by="month")


@pytest.fixture
async def books(nats: NatsServers) -> AsyncIterator[Books]:
    # An engine that stands still for a while is that of a busy machine.
    async with Fleet(nats, fleet_settings(worker=WorkerSettings(drain_timeout_s=0.1))) as fleet:
        tenant = f"books-{next(_numbers)}"
        fleet.lane = msgspec.structs.replace(fleet.lane, tenant=tenant)
        yield Books(fleet, tenant)


def code(frames: list[Frame]) -> str | None:
    return frames[-1].error.code if frames[-1].error is not None else None


def num_used(frames: list[Frame]) -> int:
    usage = frames[-1].usage
    return 0 if usage is None else usage.prompt_tokens + usage.completion_tokens


async def test_tokens_of_two_workers_never_exceed_the_limit(books: Books) -> None:
    for _ in range(2):
        await books.fleet.start_worker()
    await books.limit(tokens_per_minute=500, tokens_per_month=100_000)
    requests = [await books.fleet.publish(40, ignore_eos=True) for _ in range(60)]
    answers = [await books.fleet.answer(request) for request in requests]
    minutes = await books.minutes()
    used = sum(num_used(frames) for frames in answers)
    refused = [frames[-1].error for frames in answers if frames[-1].error is not None]
    assert {error.code for error in refused} == {Code.RATE_LIMIT_EXCEEDED}
    assert all(0 < (error.retry_after_s or 0) <= 60 for error in refused)
    assert all(num_tokens <= 500 for _, num_tokens in minutes), "more was used than allowed"
    assert sum(num_tokens for _, num_tokens in minutes) == used, "what was refused or not used was not given back"
    assert used > 400 * len(minutes) - 400, "hardly anything was let through"
    assert await books.spent() == used
    (row,) = await books.usage()
    assert (row.requests, row.prompt_tokens + row.completion_tokens) == (60 - len(refused), used)
    assert (row.key, row.model) == ("-", books.fleet.model)


async def test_a_published_request_counts_and_is_refused_over_the_limit(books: Books) -> None:
    await books.fleet.start_worker()
    await books.limit(requests_per_minute=3)
    requests = [await books.fleet.publish(2) for _ in range(8)]
    codes = [code(await books.fleet.answer(request)) for request in requests]
    in_minutes = [num_requests for num_requests, _ in await books.minutes()]
    assert sum(in_minutes) == len(requests)
    assert codes.count(None) == sum(min(3, num_requests) for num_requests in in_minutes)
    assert set(codes) == {None, Code.RATE_LIMIT_EXCEEDED}
    assert sum(row.requests for row in await books.usage()) == codes.count(None)


async def test_a_spent_budget_is_another_refusal_and_a_raised_one_lets_go_on(books: Books) -> None:
    await books.fleet.start_worker()
    await books.limit(tokens_per_month=60)
    answers = [await books.fleet.answer(await books.fleet.publish(20, ignore_eos=True)) for _ in range(2)]
    assert [code(frames) for frames in answers] == [None, Code.INSUFFICIENT_QUOTA]
    assert await books.spent() == num_used(answers[0])
    await books.limit(tokens_per_month=300)
    assert code(await books.fleet.answer(await books.fleet.publish(20, ignore_eos=True))) is None


async def test_what_can_never_fit_is_told_so(books: Books) -> None:
    await books.fleet.start_worker()
    await books.limit(tokens_per_minute=50)
    error = (await books.fleet.answer(await books.fleet.publish(51)))[-1].error
    assert error is not None
    assert (error.code, error.param, error.retry_after_s) == (Code.RATE_LIMIT_EXCEEDED, "max_tokens", None)
    assert {num_tokens for _, num_tokens in await books.minutes()} == {0}


@pytest.mark.parametrize(
    ("call", "limited"),
    [("put_claim", True), ("count", True), ("put_terminal", True), ("ack", True), ("count", False), ("ack", False)],
)
async def test_after_a_kill_nothing_is_counted_twice(books: Books, call: str, limited: bool) -> None:
    first = await books.fleet.start_worker()
    if limited:
        await books.limit(tokens_per_minute=1000, requests_per_minute=100, tokens_per_month=1000)
    first.faults.die_before(call)
    request = await books.fleet.publish(20, ignore_eos=True)
    async with deadline(20, "the worker comes to its end"):
        await first.faults.dead.wait()
    await books.fleet.start_worker()
    frames = await books.fleet.answer(request)
    await _assert_counted_once(books, num_used(frames), limited=limited)


async def test_a_worker_killed_in_mid_answer_and_one_killed_after_it_has_counted(books: Books) -> None:
    first = await books.fleet.start_worker()
    await books.limit(tokens_per_minute=1000, requests_per_minute=100, tokens_per_month=1000)
    request = await books.fleet.publish(40, ignore_eos=True)
    await books.fleet.until_tokens(request, 10)
    first.faults.die()
    second = await books.fleet.start_worker()
    second.faults.die_before("ack")
    async with deadline(20, "the second worker comes to its end"):
        await second.faults.dead.wait()
    await books.fleet.start_worker()
    frames = await books.fleet.answer(request)
    assert frames[-1].usage is not None
    assert frames[-1].usage.completion_tokens == 40
    await _assert_counted_once(books, num_used(frames), limited=True)


async def test_a_refusal_that_a_killed_worker_did_not_tell_stays_one(books: Books) -> None:
    first = await books.fleet.start_worker()
    await books.limit(tokens_per_minute=60)
    first.faults.die_before("put_terminal")
    request = await books.fleet.publish(61)
    async with deadline(20, "the worker comes to its end"):
        await first.faults.dead.wait()
    await books.fleet.start_worker()
    assert code(await books.fleet.answer(request)) == Code.RATE_LIMIT_EXCEEDED
    assert {num_tokens for _, num_tokens in await books.minutes()} == {0}
    assert await books.usage() == []


async def test_what_a_cancelled_request_has_generated_counts(books: Books) -> None:
    await books.fleet.start_worker()
    await books.limit(tokens_per_minute=10_000)
    request = await books.fleet.publish(4000, ignore_eos=True)
    await books.fleet.until_tokens(request, 5)
    await books.fleet.client.send_cancel(books.fleet.key(request))
    assert code(await books.fleet.answer(request)) == Code.CANCELLED
    (row,) = await books.usage()
    assert row.requests == 1
    assert 5 <= row.completion_tokens < 4000
    assert [tokens for _, tokens in await books.minutes()] == [row.prompt_tokens + row.completion_tokens]


async def test_an_unlimited_request_costs_one_count_and_no_look(books: Books) -> None:
    worker = await books.fleet.start_worker()
    looks = worker.faults.gate("counted")
    await books.fleet.answer(await books.fleet.publish(4))
    assert not looks.reached.is_set()
    assert await books.minutes() == []
    assert [row.requests for row in await books.usage()] == [1]


async def _assert_counted_once(books: Books, used: int, *, limited: bool) -> None:
    (row,) = await books.usage()
    assert (row.requests, row.prompt_tokens + row.completion_tokens) == (1, used)
    if limited:
        assert await books.minutes() == [(1, used)]
        assert await books.spent() == used
