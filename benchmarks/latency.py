"""Two promises about latency, on the real path: a chat's history is never computed twice, and a long prompt does not
stall streams that run.

    python benchmarks/latency.py --gguf model.gguf [--only chat|long] [--json FILE]

chat: 16 conversations of 8 turns on two workers; the time to the first token of turns 2 to 8, over that of prompts as
long as a turn's new words alone, asked by as many clients of the same servers.
long: one prompt of 4,000 tokens among 8 streams; the time between the streams' tokens, its 99th percentile over its
median.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
from arrivals import closed_loop
from client import Answer, Client, Server
from load import percentile
from rich.console import Console
from servers import inferflux
from shapes import SHAPES, Conversation
from summary import Spread, spread

NUM_CONVERSATIONS = 16
NUM_STREAMS = 8
STREAM_TOKENS = 200
LONG_WORDS = 3900
LONG_CONTEXT = 6144


class ChatFigures(msgspec.Struct, frozen=True):
    """Times to first token; `ratio` is the later turns' median over that of the new words alone."""

    first_turn: Spread
    later_turns: Spread
    alone: Spread
    ratio: float


class LongFigures(msgspec.Struct, frozen=True):
    """Milliseconds between tokens of the streams, before and while the long prompt is computed, and over all of their
    life; `ratio` is the last one's 99th percentile over its median."""

    prompt_tokens: int
    prompt_s: float
    before: Spread
    during: Spread
    whole: Spread
    ratio: float


async def chat(server: Server) -> ChatFigures:
    """Runs the conversations, then as many single questions as they had turns."""
    shape = SHAPES["chat"]
    single = msgspec.structs.replace(shape, num_turns=1)
    conversations = [Conversation(shape, "", 1, number) for number in range(NUM_CONVERSATIONS)]
    run = await closed_loop(server, shape, conversations, NUM_CONVERSATIONS)
    questions = [Conversation(single, "", 2, number) for number in range(NUM_CONVERSATIONS * shape.num_turns)]
    alone = await closed_loop(server, single, questions, NUM_CONVERSATIONS)
    _raise(run.errors + alone.errors)
    later = [answer.first_s for turn in run.turns[1:] for answer in turn]
    firsts = [answer.first_s for answer in alone.answers]
    return ChatFigures(
        spread([answer.first_s for answer in run.turns[0]]),
        spread(later),
        spread(firsts),
        percentile(later, 0.5) / percentile(firsts, 0.5),
    )


async def long(server: Server) -> LongFigures:
    """Starts the streams, and the long prompt once all of them run."""
    streams = [
        asyncio.create_task(Client(server).ask(SHAPES["short"].path, _body(60, STREAM_TOKENS, number)))
        for number in range(NUM_STREAMS)
    ]
    await Client(server).ask(SHAPES["short"].path, _body(10, 20, NUM_STREAMS))
    sent_s = time.perf_counter()
    prompt = await Client(server).ask(SHAPES["short"].path, _body(LONG_WORDS, 1, NUM_STREAMS + 1))
    answers = await asyncio.gather(*streams)
    whole = [gap for answer in answers for gap in answer.gaps_s]
    before = [gap for answer in answers for at_s, gap in _gaps(answer) if at_s < sent_s]
    during = [gap for answer in answers for at_s, gap in _gaps(answer) if sent_s <= at_s < sent_s + prompt.first_s]
    return LongFigures(
        prompt.num_prompt_tokens,
        round(prompt.first_s, 3),
        spread(before),
        spread(during),
        spread(whole),
        percentile(whole, 0.99) / percentile(whole, 0.5),
    )


def _body(num_words: int, num_tokens: int, number: int) -> dict[str, Any]:
    shape = msgspec.structs.replace(SHAPES["short"], num_words=num_words, num_tokens=num_tokens)
    return Conversation(shape, "", 3, number).question()


def _gaps(answer: Answer) -> list[tuple[float, float]]:
    """When each gap between tokens ended, and how long it was."""
    at_s, gaps = answer.sent_s + answer.first_s, []
    for gap_s in answer.gaps_s:
        at_s += gap_s
        gaps.append((at_s, gap_s))
    return gaps


def _raise(errors: tuple[str, ...]) -> None:
    if errors:
        raise RuntimeError(f"{len(errors)} requests failed, the first: {errors[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--only", choices=["chat", "long"])
    parser.add_argument("--chunk", type=int, default=256, help="runtime.scheduler.chunked_prefill_tokens of long")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    console = Console()
    model = {"path": str(arguments.gguf.resolve()), "id": "model", "backend": "llamacpp"}
    figures: dict[str, ChatFigures | LongFigures] = {}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only != "long":
            with inferflux(Path(folder), model, {}, num_workers=2) as server:
                result = figures["chat"] = asyncio.run(chat(server))
            console.print(
                f"chat: first token of turns 2 to 8 {result.later_turns.p50_ms:.0f} ms, of the new words alone "
                f"{result.alone.p50_ms:.0f} ms: {result.ratio:.2f} times (turn 1: {result.first_turn.p50_ms:.0f} ms)"
            )
        if arguments.only != "chat":
            bounds = {"max_batch_size": NUM_STREAMS + 2, "chunked_prefill_tokens": arguments.chunk}
            runtime = {"llamacpp": {"context_length": LONG_CONTEXT}, "scheduler": bounds}
            with inferflux(Path(folder), model, runtime) as server:
                stalls = figures["long"] = asyncio.run(long(server))
            console.print(
                f"long: {stalls.prompt_tokens} tokens in {stalls.prompt_s:.1f} s; between tokens "
                f"{stalls.before.p50_ms:.0f} ms before, {stalls.during.p50_ms:.0f} ms (p99 {stalls.during.p99_ms:.0f}) "
                f"during; over all p99 {stalls.whole.p99_ms:.0f} ms is {stalls.ratio:.2f} times the median"
            )
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


if __name__ == "__main__":
    main()
