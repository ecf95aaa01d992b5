"""A load generator for OpenAI-style streams: closed loop, raw sockets, and as little work for each event as can be.

It shares the machine with what it measures, so it does not parse events: it counts them and notes when they came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec

EVENT = b"data: "
DONE = b"data: [DONE]"


class Target(msgspec.Struct, frozen=True):
    """Where the requests go."""

    host: str
    port: int
    path: str
    key: str = ""


class Timing(msgspec.Struct, frozen=True):
    """One request: seconds from sending it to the first event and to the last, and how many events carried tokens."""

    first_s: float
    total_s: float
    num_events: int


class LoadResult(msgspec.Struct, frozen=True):
    """What a run gave; `took_s` is the whole run's time."""

    took_s: float
    timings: tuple[Timing, ...]

    @property
    def events_per_s(self) -> float:
        return sum(timing.num_events for timing in self.timings) / self.took_s

    def first_s(self, quantile: float) -> float:
        return percentile([timing.first_s for timing in self.timings], quantile)


def percentile(values: Sequence[float], quantile: float) -> float:
    """The nearest-rank quantile, 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


async def closed_loop(
    target: Target, bodies: Sequence[bytes], *, num_clients: int, num_extra_events: int, pause_s: float = 0.0
) -> LoadResult:
    """Send every body once, from clients that each wait for an answer, and then `pause_s`, before they ask again.

    `num_extra_events` is how many events of an answer carry no token (role, usage, end).
    """
    waiting = list(reversed(bodies))
    timings: list[Timing] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        while waiting:
            timings.append(await _ask(reader, writer, target, waiting.pop(), num_extra_events))
            if pause_s:
                await asyncio.sleep(pause_s)
        writer.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(num_clients)))
    return LoadResult(time.perf_counter() - started_s, tuple(timings))


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: Target, body: bytes, num_extra: int
) -> Timing:
    head = (
        f"POST {target.path} HTTP/1.1\r\nhost: {target.host}:{target.port}\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {target.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    sent_s = time.perf_counter()
    writer.write(head.encode() + body)
    status = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in status[:20] and b" 201 " not in status[:20]:
        raise RuntimeError(f"the server refused: {status.decode(errors='replace')}{await reader.read(2000)!r}")
    first_s, num_events, tail = 0.0, 0, b""
    while True:
        data = tail + await reader.read(65536)
        if data == tail:
            raise RuntimeError("the server closed the stream before its end")
        if not first_s and EVENT in data:
            first_s = time.perf_counter() - sent_s
        # An event's prefix may be cut by a read: keep enough of the end to see it next time, and count it once.
        keep = len(EVENT) - 1
        num_events += data.count(EVENT)
        tail = data[-keep:]
        if DONE in data or data.endswith(b"0\r\n\r\n"):
            break
    while not data.endswith(b"0\r\n\r\n"):
        data = data[-4:] + await reader.read(65536)
    return Timing(first_s, time.perf_counter() - sent_s, num_events - 1 - num_extra)
