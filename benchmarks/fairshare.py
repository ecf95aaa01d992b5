"""Fair share without a broker: simulated fleets of 1, 8 and 64 workers with 1,000 tenants, and the cost of a decision.

    python benchmarks/fairshare.py [--requests N] [--workers 1,8,64] [--json FILE] [--svg FILE]

A tenth of the tenants always have prompts waiting, the others come and go and ask for half of the fleet together;
every tenant has its own prompt and output lengths, spread over a factor of ten. Time is counted, not waited for.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypedDict

from rich.console import Console
from rich.table import Table

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.config.settings import FairnessSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from harness.simulation import MODEL, Job, Simulation

NUM_TENANTS = 1000
NUM_WATCHED = 32
NUM_SLOTS = 16
NUM_KV_TOKENS = 1024
PASSING_BY = 0.4
"""Prompts a step and worker from tenants that come and go."""
DECISIONS_AMONG = (10, 100, 1000, 10_000)


class Fleet(TypedDict):
    """What one simulated fleet did. Tokens are weighted: input 1, output 2."""

    num_workers: int
    num_requests: int
    simulated_s: float
    wall_s: float
    widest: float
    allowed: float
    unreported: float
    num_idle_slots: int
    served_each: float
    jain: float


class Decision(TypedDict):
    """Microseconds for one choice and the charge that follows it."""

    num_tenants: int
    p50_us: float
    p99_us: float
    p50_after_news_us: float


class Tenant(NamedTuple):
    """Who sends what."""

    name: str
    longest_input: int
    longest_output: int
    floods: bool

    def job(self, rng: random.Random) -> Job:
        return Job(self.name, rng.randint(1, self.longest_input), rng.randint(1, self.longest_output))


def tenants(rng: random.Random) -> list[Tenant]:
    return [
        Tenant(f"tenant-{number:04}", rng.randint(10, 100), rng.randint(10, 100), floods=number % 10 == 0)
        for number in range(NUM_TENANTS)
    ]


def run_fleet(num_workers: int, num_requests: int) -> Fleet:
    """A fleet until it has finished `num_requests`; a fifth of its workers join half-way."""
    rng = random.Random(num_workers)
    everybody = tenants(rng)
    flooding = [tenant for tenant in everybody if tenant.floods]
    simulation = Simulation(step_s=0.1, tokens_per_step=5, gossip_steps=1)
    simulation.watched = {tenant.name for tenant in flooding[:NUM_WATCHED]}
    started = time.perf_counter()
    num_started = 0
    while simulation.num_finished < num_requests:
        num_wanted = num_workers if 2 * simulation.num_finished >= num_requests else max(1, num_workers * 4 // 5)
        while num_started < num_wanted:
            fair = FairShare(MODEL, f"w{num_started:02}", "e", FairnessSettings())
            simulation.add_worker(fair, num_slots=NUM_SLOTS, num_kv_tokens=NUM_KV_TOKENS)
            num_started += 1
        for tenant in flooding:
            queue = simulation.queues.get(Lane(MODEL, ServiceClass.DEFAULT, tenant.name), ())
            for _ in range(num_workers + 2 - len(queue) if len(queue) <= num_workers else 0):
                simulation.submit(tenant.job(rng))
        for _ in range(num_workers):
            if rng.random() < PASSING_BY:
                simulation.submit(rng.choice(everybody).job(rng))
        simulation.step()
    served = [simulation.served[tenant.name] for tenant in flooding]
    return Fleet(
        num_workers=num_workers,
        num_requests=simulation.num_finished,
        simulated_s=round(simulation.now_s, 1),
        wall_s=round(time.perf_counter() - started, 1),
        widest=simulation.widest,
        allowed=simulation.bound,
        unreported=simulation.unreported,
        num_idle_slots=simulation.num_idle_slots,
        served_each=statistics.fmean(served),
        jain=sum(served) ** 2 / (len(served) * sum(tokens**2 for tokens in served)),
    )


def time_decisions(num_tenants: int, num_decisions: int = 20_000) -> Decision:
    """Choice and charge among tenants that all wait; then choices that come after news of 1,000 counters."""
    rng = random.Random(num_tenants)
    fair = FairShare(MODEL, "w0", "e", FairnessSettings())
    lanes = [Lane(MODEL, ServiceClass.DEFAULT, f"tenant-{number:05}") for number in range(num_tenants)]
    for lane in lanes:
        fair.set_backlog(lane, 5, 0.0)
    costs = sorted(decide(fair, rng, num_decisions))
    after_news: list[float] = []
    elsewhere = FairShare(MODEL, "w1", "e", FairnessSettings())
    for step in range(50):
        for lane in rng.choices(lanes, k=1000):
            elsewhere.charge(lane, num_output=5, now_s=0.1 * step)
        fair.merge(elsewhere.gossip(0.1 * step, 0, "cpu"), 0.1 * step)
        after_news.extend(decide(fair, rng, 32))
    return Decision(
        num_tenants=num_tenants,
        p50_us=costs[len(costs) // 2],
        p99_us=costs[len(costs) * 99 // 100],
        p50_after_news_us=statistics.median(after_news),
    )


def decide(fair: FairShare, rng: random.Random, num_decisions: int) -> Iterator[float]:
    for _ in range(num_decisions):
        num_input = rng.randint(10, 1000)
        started = time.perf_counter()
        lane = fair.choose(0.0)
        assert lane is not None
        fair.charge(lane, num_input=num_input, now_s=0.0)
        yield (time.perf_counter() - started) * 1e6


def time_merge(num_entries: int = 40) -> float:
    """Microseconds to take in one message of a busy worker: 32 changed entries and 8 repeated ones."""
    sender = FairShare(MODEL, "w1", "e", FairnessSettings())
    receiver = FairShare(MODEL, "w0", "e", FairnessSettings())
    costs: list[float] = []
    for step in range(2000):
        for number in range(num_entries - 8):
            lane = Lane(MODEL, ServiceClass.DEFAULT, f"tenant-{(step * 7 + number) % NUM_TENANTS:04}")
            sender.charge(lane, num_output=5, now_s=0.1 * step)
        gossip = sender.gossip(0.1 * step, 0, "cpu")
        started = time.perf_counter()
        receiver.merge(gossip, 0.1 * step)
        costs.append((time.perf_counter() - started) * 1e6)
    return statistics.median(costs)


def print_tables(console: Console, fleets: list[Fleet], decisions: list[Decision], merge_us: float) -> None:
    table = Table(title=f"{NUM_TENANTS} tenants, {NUM_SLOTS} slots and {NUM_KV_TOKENS} KV tokens a worker")
    for column in ("workers", "requests", "simulated s", "served each", "widest", "allowed", "idle slots", "Jain"):
        table.add_column(column, justify="right")
    for fleet in fleets:
        table.add_row(
            str(fleet["num_workers"]),
            f"{fleet['num_requests']:,}",
            f"{fleet['simulated_s']:,.0f}",
            f"{fleet['served_each']:,.0f}",
            f"{fleet['widest']:,.0f}",
            f"{fleet['allowed']:,.0f}",
            str(fleet["num_idle_slots"]),
            f"{fleet['jain']:.5f}",
        )
    console.print(table)
    table = Table(title="one decision (choose and charge), microseconds")
    for column in ("tenants waiting", "p50", "p99", "p50 after news"):
        table.add_column(column, justify="right")
    for decision in decisions:
        table.add_row(
            f"{decision['num_tenants']:,}",
            f"{decision['p50_us']:.1f}",
            f"{decision['p99_us']:.1f}",
            f"{decision['p50_after_news_us']:.1f}",
        )
    console.print(table)
    console.print(f"merging one message of 40 entries: {merge_us:.0f} microseconds")


def draw(fleets: list[Fleet], decisions: list[Decision]) -> str:
    """Two bar charts as one SVG: the widest difference against what is allowed, and the cost of a decision."""
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" width="760" height="300" font-family="sans-serif" font-size="12">',
        '<rect width="760" height="300" fill="#fff"/>',
    ]
    shares = [(f"{fleet['num_workers']} workers", 100 * fleet["widest"] / fleet["allowed"]) for fleet in fleets]
    costs = [(f"{decision['num_tenants']:,}", decision["p50_us"]) for decision in decisions]
    parts += bars(20, "widest difference, % of what is allowed", shares, top=100.0)
    parts += bars(400, "one decision by tenants waiting, p50 microseconds", costs, top=2 * max(c for _, c in costs))
    return "\n".join([*parts, "</svg>", ""])


def bars(left: int, title: str, values: list[tuple[str, float]], top: float) -> Iterator[str]:
    yield f'<text x="{left}" y="24" font-weight="bold">{title}</text>'
    yield f'<line x1="{left}" y1="260" x2="{left + 330}" y2="260" stroke="#333"/>'
    width = 330 / len(values)
    for number, (label, value) in enumerate(values):
        x, height = left + number * width, 210 * value / top
        size = f'width="{width / 2:.1f}" height="{height:.1f}"'
        yield f'<rect x="{x + width / 4:.1f}" y="{260 - height:.1f}" {size} fill="#3b6ea5"/>'
        yield f'<text x="{x + width / 2:.1f}" y="{254 - height:.1f}" text-anchor="middle">{value:.1f}</text>'
        yield f'<text x="{x + width / 2:.1f}" y="278" text-anchor="middle">{label}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000, help="for each fleet (default %(default)s)")
    parser.add_argument("--workers", default="1,8,64", help="fleet sizes (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--svg", type=Path, help="write the plot here")
    args = parser.parse_args()
    console = Console()
    decisions = [time_decisions(num_tenants) for num_tenants in DECISIONS_AMONG]
    merge_us = time_merge()
    fleets: list[Fleet] = []
    for num_workers in map(int, args.workers.split(",")):
        fleets.append(run_fleet(num_workers, args.requests))
        console.print(f"{num_workers} workers: {fleets[-1]['wall_s']} s", style="dim")
    print_tables(console, fleets, decisions, merge_us)
    if args.json:
        args.json.write_text(json.dumps({"fleets": fleets, "decisions": decisions, "merge_us": merge_us}, indent=1))
    if args.svg:
        args.svg.write_text(draw(fleets, decisions))
    if any(fleet["widest"] > fleet["allowed"] or fleet["num_idle_slots"] for fleet in fleets):
        sys.exit("a bound was broken")


if __name__ == "__main__":
    main()
