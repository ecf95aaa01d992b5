"""When a worker speaks to the others of its model."""

from __future__ import annotations

import asyncio
import time

import pytest

from inferflux.broker.fairshare import FairShare
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import Gossip, decode_gossip
from inferflux.config.settings import FairnessSettings
from inferflux.workers import gossiper
from inferflux.workers.gossiper import Gossiper

SETTINGS = FairnessSettings(gossip_interval_s=0.01)


async def test_a_worker_that_was_alone_answers_a_newcomer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossiper, "ALONE_INTERVALS", 10**9)
    broker, fair, newcomer = MemoryBroker(MemoryHub()), *(FairShare("m", each, "e", SETTINGS) for each in ("w0", "w1"))
    alone = asyncio.Event()
    said: asyncio.Queue[Gossip] = asyncio.Queue()

    def note_silence() -> None:
        if not fair.has_company(time.monotonic()):
            alone.set()

    def hear(body: bytes) -> None:
        gossip = decode_gossip(body)
        if gossip.worker == "w0":
            said.put_nowait(gossip)

    await broker.listen_gossip("m", hear)
    speaker = Gossiper("m", broker, fair, 0.01, tell=lambda now_s: fair.gossip(now_s, 4, "cpu"), on_news=note_silence)
    await speaker.start()
    async with asyncio.timeout(60):
        await alone.wait()
        while not said.empty():
            said.get_nowait()
        await broker.send_gossip("m", encode(newcomer.gossip(time.monotonic(), 1, "cpu")))
        assert (await said.get()).num_free_slots == 4
    await speaker.close()


def test_a_newcomer_has_company_until_it_has_listened() -> None:
    fair = FairShare("m", "w0", "e", SETTINGS)
    assert fair.has_company(0.0)
    fair.gossip(0.0, 0, "cpu")
    assert fair.has_company(0.05)
    assert not fair.has_company(0.07)


def test_who_is_heard_is_company_until_he_falls_silent() -> None:
    fair, other = (FairShare("m", each, "e", SETTINGS) for each in ("w0", "w1"))
    fair.gossip(0.0, 0, "cpu")
    fair.merge(other.gossip(0.0, 0, "cpu"), 1.0)
    assert fair.has_company(1.02)
    assert not fair.has_company(1.04)
