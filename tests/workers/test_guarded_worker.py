"""Guardrails in workers over a real NATS: prompts that nobody has judged, answers that are cut, deaths in between."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest
from harness.fleet import PROMPT, Fleet, deadline, fleet_settings, stub_text
from harness.nats import NatsServers

from inferflux.config.audit import Audit
from inferflux.config.settings import (
    GuardrailSetSettings,
    GuardrailSettings,
    LoggingSettings,
    Settings,
    WorkerSettings,
)

pytestmark = [pytest.mark.integration]

NUM_TOKENS = 40
WORDS = stub_text(PROMPT, NUM_TOKENS).split()


def guarded(*terms: str, action: str = "block") -> Settings:
    made = GuardrailSetSettings(name="words", terms=terms, action=action)  # type: ignore[arg-type]
    guardrails = GuardrailSettings(blocklist=("words",), sets=(made,))
    # An engine that stands still for a while is that of a busy machine.
    return fleet_settings(guardrails=guardrails, worker=WorkerSettings(drain_timeout_s=0.1))


async def test_a_prompt_of_token_ids_is_read_by_the_worker(nats: NatsServers) -> None:
    async with Fleet(nats, guarded("the sea")) as fleet:
        await fleet.start_worker()
        frames = await fleet.answer(await fleet.publish(prompt=list(b"about the sea")))
        assert frames[-1].error is not None
        assert frames[-1].error.code == "content_filter"
        frames = await fleet.answer(await fleet.publish(prompt=list(b"about the seaside"), max_tokens=3))
        assert frames[-1].error is None


async def test_a_cut_answer_stops_the_engine_and_frees_its_pages(nats: NatsServers) -> None:
    phrase = " ".join(WORDS[4:6])
    async with Fleet(nats, guarded(phrase)) as fleet:
        worker = await fleet.start_worker()
        frames = await fleet.answer(await fleet.publish(5_000, ignore_eos=True))
        assert frames[-1].finish_reason == "content_filter"
        assert frames[-1].usage is not None
        text = "".join(frame.text for frame in frames)
        assert text == stub_text(PROMPT, NUM_TOKENS).partition(phrase)[0]
        (mount,) = worker.worker.mounts.values()
        assert mount.host is not None
        async with deadline(20, "an engine at rest"):
            while mount.host.stats().num_running:
                await asyncio.sleep(0.01)
        stats = mount.host.stats()
        assert (stats.num_waiting, stats.num_pages_used) == (0, 0)
        assert stats.generated_tokens < 2_000


async def test_one_choice_is_cut_and_the_other_goes_on(nats: NatsServers) -> None:
    prompts = ["about the sea", "about the road"]
    texts = [stub_text(prompt, 12) for prompt in prompts]
    pairs = (" ".join(texts[0].split()[at : at + 2]) for at in range(2, 10))
    phrase = next(pair for pair in pairs if pair not in texts[1])
    async with Fleet(nats, guarded(phrase)) as fleet:
        await fleet.start_worker()
        frames = await fleet.answer(await fleet.publish(12, prompt=prompts, ignore_eos=True))
    ends = {frame.choice: frame.finish_reason for frame in frames if frame.finish_reason}
    assert ends == {0: "content_filter", 1: "length"}
    told = ["".join(frame.text for frame in frames if frame.choice == choice) for choice in (0, 1)]
    assert told == [texts[0].partition(phrase)[0], texts[1]]


@pytest.mark.parametrize("how", ["drained", "killed"])
async def test_what_was_held_back_is_generated_again_by_the_next_worker(nats: NatsServers, how: str) -> None:
    """Every word begins some phrase, so that something is held back whenever the first worker ends."""
    phrases = [" ".join(WORDS[at : at + 4]) for at in range(2, NUM_TOKENS - 4, 6)]
    near = [" ".join([*WORDS[at : at + 3], "nowhere"]) for at in range(1, NUM_TOKENS - 3)]
    settings = guarded(*phrases, *near, action="redact")
    async with Fleet(nats, settings) as fleet:
        first = await fleet.start_worker()
        request = await fleet.publish(NUM_TOKENS, ignore_eos=True)
        await fleet.until_tokens(request, 12)
        if how == "drained":
            await first.drain()
        else:
            await first.close()
            fleet.workers.remove(first)
        await fleet.start_worker()
        frames = await fleet.answer(request)
    expected = stub_text(PROMPT, NUM_TOKENS)
    for phrase in phrases:
        expected = expected.replace(phrase, "[redacted:words]")
    assert "".join(frame.text for frame in frames) == expected
    assert [frame.index for frame in frames] == sorted(frame.index for frame in frames)
    assert sum(frame.num_tokens for frame in frames) == NUM_TOKENS
    assert frames[-1].usage is not None
    assert frames[-1].usage.completion_tokens == NUM_TOKENS


async def test_what_a_worker_refuses_is_audited(nats: NatsServers, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with Fleet(nats, guarded("the sea")) as fleet:
        worker = await fleet.start_worker()
        audit = Audit(LoggingSettings(audit_log=str(path)), "worker")
        worker.worker._control.audit = audit
        request = await fleet.publish(prompt="about the sea")
        await fleet.answer(request)
        audit.close()
    (line,) = [line for line in map(msgspec.json.decode, path.read_bytes().splitlines()) if "request" in line]
    assert (line["request"], line["tenant"], line["verdict"]) == (request, "acme", "denied")
    assert (line["detail"]["guardrail"], line["detail"]["code"]) == ("words", "content_filter")
    assert "prompt" not in line["detail"]
