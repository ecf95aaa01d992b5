"""How load arrives: a closed loop of clients, or a Poisson stream of conversations."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Iterator

import msgspec
from client import Answer, Client, Refused, Server
from shapes import Conversation, Shape


class Run(msgspec.Struct, frozen=True):
    """What a run gave. `turns[i]` are the answers to the i-th turn of the conversations."""

    took_s: float
    turns: tuple[tuple[Answer, ...], ...]
    errors: tuple[str, ...] = ()

    @property
    def answers(self) -> list[Answer]:
        return [answer for turn in self.turns for answer in turn]

    @property
    def tokens_per_s(self) -> float:
        return sum(answer.num_tokens for answer in self.answers) / self.took_s


class Recorder:
    """Collects answers while conversations run."""

    def __init__(self, server: Server, shape: Shape) -> None:
        self._server = server
        self._shape = shape
        self._turns: list[list[Answer]] = [[] for _ in range(shape.num_turns)]
        self._errors: list[str] = []
        self._began_s = time.perf_counter()

    def client(self) -> Client:
        return Client(self._server)

    async def hold(self, client: Client, conversation: Conversation) -> None:
        """All turns of a conversation, one after the other; an error ends it."""
        try:
            for answers in self._turns:
                answer = await client.ask(self._shape.path, conversation.question())
                answers.append(answer)
                conversation.answered(answer.text)
        except (Refused, OSError, EOFError) as error:
            self._errors.append(str(error) or type(error).__name__)

    def run(self) -> Run:
        took_s = time.perf_counter() - self._began_s
        return Run(took_s, tuple(map(tuple, self._turns)), tuple(self._errors))


async def closed_loop(server: Server, shape: Shape, conversations: Iterable[Conversation], num_clients: int) -> Run:
    """Clients that each begin a conversation when their last one has ended."""
    waiting = iter(conversations)
    recorder = Recorder(server, shape)

    async def work() -> None:
        client = recorder.client()
        for conversation in waiting:
            await recorder.hold(client, conversation)
        await client.close()

    await asyncio.gather(*(work() for _ in range(num_clients)))
    return recorder.run()


async def open_loop(
    server: Server, shape: Shape, conversations: Iterable[Conversation], rate_per_s: float, seed: int
) -> Run:
    """Conversations that begin at the times of a Poisson process, however many still run."""
    recorder = Recorder(server, shape)

    async def work(conversation: Conversation) -> None:
        client = recorder.client()
        await recorder.hold(client, conversation)
        await client.close()

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for at_s, conversation in zip(_poisson(rate_per_s, seed), conversations, strict=False):
            await asyncio.sleep(began_s + at_s - time.perf_counter())
            tasks.create_task(work(conversation))
    return recorder.run()


def _poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """Arrival times in seconds from the start."""
    draw = random.Random(f"{seed}/arrivals")
    at_s = 0.0
    while True:
        at_s += draw.expovariate(rate_per_s)
        yield at_s
