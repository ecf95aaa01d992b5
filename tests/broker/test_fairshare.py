"""The fair-share policy: whom it picks, what it counts, and the bound of the Virtual Token Counter."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest
from harness.simulation import MODEL, Job, Simulation
from hypothesis import given, settings
from hypothesis import strategies as st

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire import Gossip, decode_gossip, encode
from inferflux.config.settings import FairnessSettings, MinShareSettings

DEFAULT, BATCH, PRIORITY = ServiceClass.DEFAULT, ServiceClass.BATCH, ServiceClass.PRIORITY


def lane(tenant: str, service_class: ServiceClass = DEFAULT) -> Lane:
    return Lane(MODEL, service_class, tenant)


def fair_share(worker: str = "w0", policy: type[FairShare] = FairShare) -> FairShare:
    return policy(MODEL, worker, "e1", FairnessSettings())


def say(sender: FairShare, *receivers: FairShare, now_s: float) -> None:
    body = encode(sender.gossip(now_s, 0, "cpu"))
    for receiver in receivers:
        receiver.merge(decode_gossip(body), now_s)


class TestChoice:
    def test_nothing_waits(self) -> None:
        assert fair_share().choose(0.0) is None

    def test_input_costs_one_and_output_two(self) -> None:
        fair = fair_share()
        fair.charge(lane("a"), num_input=3, num_output=5, now_s=0.0)
        assert fair.counter("a") == 13.0

    def test_least_counter_goes_first(self) -> None:
        fair = fair_share()
        for tenant in "abc":
            fair.set_backlog(lane(tenant), 1, 0.0)
        for tenant, num_input in (("a", 5), ("b", 2), ("c", 9)):
            fair.charge(lane(tenant), num_input=num_input, now_s=0.0)
        assert fair.choose(0.0) == lane("b")

    def test_equal_counters_take_turns(self) -> None:
        fair = fair_share()
        for tenant in "cab":
            fair.set_backlog(lane(tenant), 1, 0.0)
        chosen = [fair.choose(0.0) for _ in range(6)]
        assert chosen == [lane(tenant) for tenant in "abcabc"]

    def test_excluded_lanes_are_passed_over_and_come_back(self) -> None:
        fair = fair_share()
        for tenant in "ab":
            fair.set_backlog(lane(tenant), 1, 0.0)
        assert fair.choose(0.0, exclude=[lane("a")]) == lane("b")
        assert fair.choose(0.0, exclude=[lane("a"), lane("b")]) is None
        assert fair.choose(0.0) == lane("a")

    def test_a_lane_that_no_longer_waits_is_not_chosen(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("a"), 1, 0.0)
        fair.set_backlog(lane("a"), 0, 0.0)
        assert fair.choose(0.0) is None
        assert fair.num_waiting(lane("a")) == 0

    def test_a_decision_costs_the_same_among_many(self) -> None:
        assert counters_read(10_000) <= 1.5 * counters_read(100) < 20

    def test_weight_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="weight of tenant 'a'"):
            fair_share().set_weight("a", 0.0)

    def test_a_new_weight_moves_no_counter(self) -> None:
        fair, other = fair_share("w0"), fair_share("w1")
        fair.charge(lane("a"), num_input=100, now_s=0.0)
        fair.set_weight("a", 4.0)
        assert fair.counter("a") == 100.0
        fair.charge(lane("a"), num_input=100, now_s=0.0)
        say(fair, other, now_s=0.0)
        assert fair.counter("a") == other.counter("a") == 125.0
        assert other.snapshot()[0].total == 200.0


def counters_read(num_tenants: int) -> float:
    """Counters that one decision looks at, on average, with a charge after each."""

    class Counting(FairShare):
        num_read = 0

        def counter(self, tenant: str, service_class: ServiceClass = DEFAULT) -> float:
            self.num_read += 1
            return super().counter(tenant, service_class)

    fair = fair_share(policy=Counting)
    assert isinstance(fair, Counting)
    for number in range(num_tenants):
        fair.set_backlog(lane(f"t{number}"), 5, 0.0)
    fair.num_read = 0
    for number in range(1000):
        chosen = fair.choose(0.0)
        assert chosen is not None
        fair.charge(chosen, num_input=1 + number % 50, now_s=0.0)
    return fair.num_read / 1000


class TestLift:
    def test_to_the_least_of_those_that_wait(self) -> None:
        fair = fair_share()
        for tenant, num_input in (("a", 50), ("b", 70), ("idle", 20)):
            fair.charge(lane(tenant), num_input=num_input, now_s=0.0)
        fair.set_backlog(lane("b"), 1, 0.0)
        fair.set_backlog(lane("a"), 1, 0.0)
        assert fair.counter("a") == 70.0
        fair.set_backlog(lane("new"), 1, 0.0)
        assert fair.counter("new") == 70.0
        assert fair.counter("idle") == 20.0

    def test_nobody_is_lowered(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("a"), 1, 0.0)
        fair.charge(lane("b"), num_input=30, now_s=0.0)
        fair.set_backlog(lane("b"), 1, 0.0)
        assert (fair.counter("a"), fair.counter("b")) == (0.0, 30.0)

    def test_to_the_last_that_left_when_nobody_waits(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("a"), 1, 0.0)
        fair.set_backlog(lane("a"), 0, 0.0)
        fair.charge(lane("a"), num_input=40, now_s=0.0)
        fair.set_backlog(lane("b"), 1, 0.0)
        assert fair.counter("b") == 40.0

    def test_waiting_in_a_low_class_banks_nothing_for_a_higher_one(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("thrifty", BATCH), 1, 0.0)
        fair.set_backlog(lane("busy"), 1, 0.0)
        fair.charge(lane("busy"), num_input=1000, now_s=0.0)
        fair.set_backlog(lane("thrifty"), 1, 0.0)
        assert fair.counter("thrifty") == 1000.0
        assert fair.counter("thrifty", BATCH) == 0.0

    def test_service_after_a_lift_counts(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("a"), 1, 0.0)
        fair.charge(lane("a"), num_input=100, now_s=0.0)
        fair.set_backlog(lane("b"), 1, 0.0)
        fair.charge(lane("b"), num_input=10, now_s=0.0)
        assert fair.counter("b") == 110.0

    def test_the_same_lift_by_two_workers_counts_once(self) -> None:
        fairs = fair_share("w0"), fair_share("w1")
        fairs[0].charge(lane("a"), num_input=100, now_s=0.0)
        say(fairs[0], fairs[1], now_s=0.0)
        say(fairs[1], fairs[0], now_s=0.0)
        for fair in fairs:
            fair.set_backlog(lane("a"), 1, 1.0)
            fair.set_backlog(lane("b"), 1, 1.0)
            fair.charge(lane("b"), num_input=1, now_s=1.0)
        for now_s in (1.1, 1.2):
            say(fairs[0], fairs[1], now_s=now_s)
            say(fairs[1], fairs[0], now_s=now_s)
        assert [fair.counter("b") for fair in fairs] == [102.0, 102.0]

    @pytest.mark.parametrize("waits", [True, False])
    def test_a_newcomer_lifts_nobody_until_it_has_heard_all(self, waits: bool) -> None:
        """Lifted from half a view, a tenant would keep twice its counter for good."""

        class Rash(FairShare):
            def __init__(self, model: str, worker: str, epoch: str, fairness: FairnessSettings) -> None:
                super().__init__(model, worker, epoch, fairness)
                self._roster.whole = lambda now_s: True  # type: ignore[method-assign]

        old, older = fair_share("w0"), fair_share("w1")
        old.charge(lane("a"), num_input=1000, now_s=0.0)
        older.charge(lane("b"), num_input=1000, now_s=0.0)
        new = fair_share("w2", FairShare if waits else Rash)
        say(old, new, now_s=0.0)
        for tenant in "ab":
            new.set_backlog(lane(tenant), 1, 0.0)
        for number in range(1, 10):
            say(older, new, now_s=0.1 * number)
            say(old, new, now_s=0.1 * number)
        new.choose(1.0)
        assert [new.counter(tenant) for tenant in "ab"] == [1000.0, 1000.0 if waits else 2000.0]


class TestClasses:
    def flood(self, seconds: int, share: MinShareSettings | None = None) -> Counter[ServiceClass]:
        """Weighted tokens served to each class after the first 10 s, all three flooding."""
        simulation = Simulation()
        worker = simulation.add_worker(fair_share(), num_slots=8, num_kv_tokens=10_000)
        if share:
            worker.fair.set_shares(share)
        for service_class in ServiceClass:
            for _ in range(seconds * 20):
                simulation.submit(Job(f"t-{service_class}", 10, 20, service_class))
        while simulation.now_s < 10.0:
            simulation.step()
        before = Counter(simulation.served_by_class)
        while simulation.now_s < seconds:
            simulation.step()
        return Counter(simulation.served_by_class) - before

    def test_highest_first(self) -> None:
        fair = fair_share()
        for service_class in (BATCH, DEFAULT, PRIORITY):
            fair.set_backlog(lane("a", service_class), 1, 0.0)
            assert fair.choose(0.0) == lane("a", service_class)

    def test_nobody_starves(self) -> None:
        served = self.flood(60)
        assert 0.19 <= served[DEFAULT] / served[PRIORITY] <= 0.25
        assert 0.045 <= served[BATCH] / (served[PRIORITY] + served[DEFAULT]) <= 0.08

    def test_shares_change_while_running(self) -> None:
        served = self.flood(40, MinShareSettings(default=0.5, batch=0.0))
        assert 0.45 <= served[DEFAULT] / served[PRIORITY] <= 0.55
        assert served[BATCH] == 0.0

    def test_what_others_served_a_class_counts(self) -> None:
        fair, other = fair_share("w0"), fair_share("w1")
        for service_class in (BATCH, PRIORITY):
            fair.set_backlog(lane("a", service_class), 1, 0.0)
        fair.charge(lane("a", PRIORITY), num_input=1000, now_s=0.0)
        assert fair.choose(0.0) == lane("a", BATCH)
        other.charge(lane("b", BATCH), num_input=100, now_s=0.0)
        say(other, fair, now_s=0.0)
        assert fair.choose(0.0) == lane("a", PRIORITY)

    def test_a_window_of_ten_seconds(self) -> None:
        fair = fair_share()
        for service_class in (BATCH, PRIORITY):
            fair.set_backlog(lane("a", service_class), 1, 0.0)
        fair.charge(lane("a", PRIORITY), num_input=1000, now_s=0.0)
        assert fair.choose(9.0) == lane("a", BATCH)
        assert fair.choose(11.0) == lane("a", PRIORITY)


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


class TestFleet:
    def test_free_gpu_slots_are_fresh_ones(self) -> None:
        cpu, gpu = fair_share("cpu"), fair_share("gpu")
        cpu.merge(gpu.gossip(0.0, 3, "gpu"), 0.0)
        cpu.merge(fair_share("other").gossip(0.0, 5, "cpu"), 0.0)
        assert cpu.free_gpu_slots(0.3) == 3
        assert cpu.free_gpu_slots(0.31) == 0
        newer = gpu.gossip(0.2, 1, "gpu")
        cpu.merge(newer, 0.2)
        assert cpu.free_gpu_slots(0.3) == 1

    def test_an_old_message_brings_no_old_slots_back(self) -> None:
        cpu, gpu = fair_share("cpu"), fair_share("gpu")
        messages = gpu.gossip(0.0, 3, "gpu"), gpu.gossip(0.0, 1, "gpu")
        for message in reversed(messages):
            cpu.merge(message, 0.0)
        assert cpu.free_gpu_slots(0.0) == 1

    def test_alone_it_is_ready_after_listening(self) -> None:
        fair = fair_share()
        assert not fair.ready(0.0)
        fair.gossip(0.0, 0, "cpu")
        assert not fair.ready(0.5)
        assert fair.ready(0.61)

    def test_a_newcomer_learns_of_the_dead_from_the_living(self) -> None:
        fleet = [fair_share(f"w{number}") for number in range(3)]
        fleet[0].charge(lane("a"), num_input=500, now_s=0.0)
        fleet[0].set_backlog(lane("a"), 1, 0.0)
        fleet[0].set_backlog(lane("b"), 1, 0.0)
        fleet[0].charge(lane("b"), num_input=1, now_s=0.0)
        for step in range(100):
            for fair in fleet if step < 10 else fleet[1:]:
                say(fair, *fleet, now_s=0.1 * step)
        new = fair_share("a-newcomer")
        now_s = 10.0
        while not new.ready(now_s):
            now_s += 0.1
            for fair in (*fleet[1:], new):
                say(fair, *fleet[1:], new, now_s=now_s)
        assert now_s < 11.0
        assert (new.counter("a"), new.counter("b")) == (500.0, 501.0)

    def test_its_own_echo_changes_nothing(self) -> None:
        fair = fair_share()
        for number in range(2000):
            fair.charge(lane(f"t{number}"), num_input=1, now_s=0.0)
        message = fair.gossip(0.0, 2, "gpu")
        fair.merge(message, 0.0)
        assert fair.free_gpu_slots(0.0) == 0
        assert fair.counter("t0") == 1.0
        assert fair.gossip(0.1, 2, "gpu").num_owed == 0

    def test_after_being_away_it_asks_again(self) -> None:
        old, away = fair_share("w0"), fair_share("w1")
        for step in range(20):
            say(old, away, now_s=0.1 * step)
            say(away, old, now_s=0.1 * step)
        assert away.ready(2.0)
        for number in range(3000):
            old.charge(lane(f"t{number}"), num_input=7, now_s=2.0)
        for step in range(20):
            old.gossip(2.0 + 0.1 * step, 0, "cpu")
        away.rejoin(4.0)
        now_s = 4.0
        while not away.ready(now_s):
            now_s += 0.1
            say(away, old, now_s=now_s)
            say(old, away, now_s=now_s)
        assert all(away.counter(f"t{number}") == 7.0 for number in range(3000))

    def test_a_message_fits_the_broker(self) -> None:
        fair = fair_share()
        for number in range(5000):
            fair.charge(lane(f"{number:0>200}"), num_input=10**9, num_output=number, now_s=0.0)
        message = fair.gossip(0.0, 0, "cpu")
        assert len(encode(message)) < 500_000
        assert message.num_owed == 4000
