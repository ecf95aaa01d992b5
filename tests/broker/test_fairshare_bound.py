"""The bound of the Virtual Token Counter on simulated fleets, and the mutants that break it."""

from __future__ import annotations

import random
from collections import deque

import pytest
from harness.fairness import fair_share, lane
from harness.simulation import Job, Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane
from inferflux.broker.wire.fleet import Gossip


class FirstCome(FairShare):
    """Mutant: first come, first served."""

    arrivals: dict[Lane, deque[tuple[int, Job]]]

    def choose(self, now_s: float, *, exclude: object = ()) -> Lane | None:
        heads = {lane: queue[0][0] for lane, queue in self.arrivals.items() if queue}
        return min(heads, key=heads.__getitem__, default=None)


class NoLift(FairShare):
    """Mutant: whoever was idle takes back all that it did not ask for."""

    def _lift(self, lane: Lane, not_yet: object = ()) -> None:
        return


class UnmergedLifts(FairShare):
    """Mutant: lifts stay where they were made."""

    def merge(self, gossip: Gossip, now_s: float) -> None:
        without = Gossip(**{f: getattr(gossip, f) for f in gossip.__struct_fields__ if f != "lifts"})
        super().merge(without, now_s)


def contend(policy: type[FairShare]) -> Simulation:
    """A tenant that sends five times as much has had the fleet to itself; then the first worker is replaced."""
    simulation = Simulation()

    def start(worker: str) -> None:
        fair = fair_share(worker, policy)
        if isinstance(fair, FirstCome):
            fair.arrivals = simulation.queues
        simulation.add_worker(fair, num_slots=4, num_kv_tokens=100)

    def run(num_steps: int, **num_each: int) -> None:
        for _ in range(num_steps):
            for tenant, num in num_each.items():
                for _ in range(num):
                    simulation.submit(Job(tenant, 5, 10))
            simulation.step()

    start("w0")
    run(500, heavy=5)
    run(500, heavy=5, light=1)
    start("w1")
    run(50, heavy=5, light=1)
    del simulation.workers[0]
    run(500, heavy=5, light=1)
    return simulation


class TestBound:
    def test_two_that_wait_get_the_same(self) -> None:
        simulation = contend(FairShare)
        assert 0 < simulation.widest <= simulation.bound
        assert simulation.served["light"] > 4 * simulation.bound

    @pytest.mark.parametrize("mutant", [FirstCome, NoLift, UnmergedLifts])
    def test_mutants_break_it(self, mutant: type[FairShare]) -> None:
        simulation = contend(mutant)
        assert simulation.widest > simulation.bound

    @given(
        engines=st.lists(st.tuples(st.integers(1, 6), st.integers(50, 200)), min_size=1, max_size=3),
        tenants=st.lists(
            st.tuples(
                st.integers(1, 25), st.integers(1, 25), st.integers(0, 200), st.sampled_from([0.05, 0.3, 1.0, 2.0])
            ),
            min_size=2,
            max_size=5,
        ),
        weighted=st.booleans(),
        lossy=st.booleans(),
        late=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=60, deadline=None)
    def test_holds_for_any_load(
        self,
        engines: list[tuple[int, int]],
        tenants: list[tuple[int, int, int, float]],
        weighted: bool,
        lossy: bool,
        late: bool,
        seed: int,
    ) -> None:
        """Tenants are (longest input, longest output, first step, prompts a step); engines (slots, KV tokens)."""
        rng = random.Random(seed)
        simulation = Simulation()
        simulation.loses = (lambda: rng.random() < 0.3) if lossy else None
        if weighted:
            simulation.weights = {f"t{number}": float(1 + number) for number in range(len(tenants))}
        for step in range(400):
            for number, (num_slots, num_kv_tokens) in enumerate(engines):
                if step == 100 * number * late:
                    simulation.add_worker(fair_share(f"w{number}"), num_slots=num_slots, num_kv_tokens=num_kv_tokens)
            for number, (longest_input, longest_output, first_step, rate) in enumerate(tenants):
                for _ in range(int(rate + rng.random()) if step >= first_step else 0):
                    job = Job(f"t{number}", rng.randint(1, longest_input), rng.randint(1, longest_output))
                    simulation.submit(job)
            simulation.step()
        assert simulation.widest <= simulation.bound
        assert simulation.num_idle_slots == 0

    def test_weights_are_kept_to_a_percent(self) -> None:
        simulation = Simulation()
        simulation.weights = {"a": 4.0, "b": 1.0}
        simulation.add_worker(fair_share(), num_slots=4, num_kv_tokens=80)
        while simulation.served.get("b", 0.0) < 200 * simulation.bound / 5:
            for tenant in "ab":
                while len(simulation.queues.get(lane(tenant), ())) < 5:
                    simulation.submit(Job(tenant, 5, 10))
            simulation.step()
        assert simulation.served["a"] == pytest.approx(simulation.served["b"], rel=0.01)
