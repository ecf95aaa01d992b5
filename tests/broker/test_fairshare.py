"""The fair-share policy: whom it picks, what it counts, and whom it lifts."""

from __future__ import annotations

from collections import Counter

import pytest
from harness.fairness import BATCH, DEFAULT, PRIORITY, fair_share, lane, say
from harness.simulation import Job, Simulation

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import ServiceClass
from inferflux.config.settings import FairnessSettings, MinShareSettings


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

    def test_who_comes_back_goes_before_the_equal_it_was_lifted_to(self) -> None:
        """Otherwise each worker of a fleet may first serve that one: a light tenant would wait for as many releases."""
        fair = fair_share()
        fair.set_backlog(lane("light"), 1, 0.0)
        fair.set_backlog(lane("flood"), 5, 0.0)
        for tenant in ("flood", "light"):
            assert fair.choose(0.0) == lane(tenant)
            fair.charge(lane(tenant), num_input=10, now_s=0.0)
        fair.set_backlog(lane("light"), 0, 0.0)
        fair.charge(lane("flood"), num_input=100, now_s=0.0)
        fair.set_backlog(lane("light"), 1, 0.0)
        assert fair.counter("light") == fair.counter("flood")
        assert fair.choose(0.0) == lane("light")

    def test_excluded_lanes_are_passed_over_and_come_back(self) -> None:
        fair = fair_share()
        for tenant in "ab":
            fair.set_backlog(lane(tenant), 1, 0.0)
        assert fair.choose(0.0, exclude=[lane("a")]) == lane("b")
        assert fair.choose(0.0, exclude=[lane("a"), lane("b")]) is None
        assert fair.choose(0.0) == lane("a")

    def test_above_batch_it_is_nobody_while_batch_is_next(self) -> None:
        fair = fair_share()
        fair.set_backlog(lane("a", BATCH), 1, 0.0)
        assert fair.choose(0.0, above_batch=True) is None
        fair.set_backlog(lane("a", DEFAULT), 1, 0.0)
        assert fair.choose(0.0, above_batch=True) == lane("a", DEFAULT)
        fair.charge(lane("a", DEFAULT), num_input=1000, now_s=0.0)
        assert fair.choose(0.0) == lane("a", BATCH)
        assert fair.choose(0.0, above_batch=True) is None

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
