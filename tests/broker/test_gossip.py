"""What workers learn from each other, and what they do until they have."""

from __future__ import annotations

from harness.fairness import BATCH, fair_share, lane, say

from inferflux.broker.wire.base import encode


class TestFleet:
    def test_free_gpu_slots_are_fresh_ones(self) -> None:
        cpu, gpu = fair_share("cpu"), fair_share("gpu")
        cpu.merge(gpu.gossip(0.0, 3, "gpu"), 0.0)
        cpu.merge(fair_share("other").gossip(0.0, 5, "cpu"), 0.0)
        assert cpu.free_gpu_slots(0.3) == 3
        assert cpu.free_slots_elsewhere(0.3) == 8
        assert cpu.free_gpu_slots(0.31) == cpu.free_slots_elsewhere(0.31) == 0
        newer = gpu.gossip(0.2, 1, "gpu")
        cpu.merge(newer, 0.2)
        assert cpu.free_gpu_slots(0.3) == 1

    def test_an_old_message_brings_no_old_slots_back(self) -> None:
        cpu, gpu = fair_share("cpu"), fair_share("gpu")
        messages = gpu.gossip(0.0, 3, "gpu"), gpu.gossip(0.0, 1, "gpu")
        for message in reversed(messages):
            cpu.merge(message, 0.0)
        assert cpu.free_gpu_slots(0.0) == 1

    def test_what_the_others_hold_is_known_while_they_are_heard(self) -> None:
        fair = fair_share()
        for worker in ("w1", "w2"):
            fair.merge(fair_share(worker).gossip(0.0, 0, "cpu", {lane("a"): 2, lane("b", BATCH): 1}), 0.0)
        assert fair.running_elsewhere(0.3) == {lane("a"): 4, lane("b", BATCH): 2}
        assert not fair.running_elsewhere(0.4)

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
        away.charge(lane("busy"), num_input=100, now_s=3.0)
        away.set_backlog(lane("busy"), 1, 3.0)
        for now_s in (30.0, 60.0):
            away.gossip(now_s, 0, "cpu")
        away.rejoin(now_s)
        away.set_backlog(lane("t0"), 1, now_s)
        while not away.ready(now_s):
            now_s += 0.1
            say(away, old, now_s=now_s)
            say(old, away, now_s=now_s)
        assert all(away.counter(f"t{number}") == 7.0 for number in range(3000))
        away.choose(now_s)
        assert away.counter("t0") == 100.0

    def test_a_message_fits_the_broker(self) -> None:
        fair = fair_share()
        for number in range(5000):
            fair.charge(lane(f"{number:0>200}"), num_input=10**9, num_output=number, now_s=0.0)
        messages = [fair.gossip(0.1 * number, 0, "cpu") for number in range(5)]
        assert all(len(encode(message)) < 500_000 for message in messages)
        assert len({entry.tenant for message in messages for entry in message.totals}) == 5000
