"""Paying for prompts as they are pulled."""

from __future__ import annotations

from collections import Counter

from harness.fairness import fair_share, lane

from inferflux.workers.advance import Advance

A, B = lane("a"), lane("b")


def test_slots_that_come_free_at_once_are_shared() -> None:
    fair = fair_share()
    advance = Advance(fair)
    for each in (A, B):
        fair.set_backlog(each, 100, 0.0)
        advance.charge(each, 20, 0, 0.0)
    # A little ahead is not a reason to wait for eight others.
    advance.charge(B, 0, 15, 0.0)
    pulled: Counter[object] = Counter()
    for _ in range(8):
        chosen = fair.choose(0.0)
        assert chosen is not None
        pulled[chosen] += 1
        advance.pay(chosen, pulled[chosen], 0.0)
    assert sorted(pulled.values()) == [3, 5]


def test_a_lane_pays_for_what_was_computed_and_no_more() -> None:
    fair = fair_share()
    advance = Advance(fair)
    for num_input in (30, 10, 50, 20):
        advance.pay(A, 1, 0.0)
        advance.charge(A, num_input, 5, 0.0)
    while advance._paid[A]:
        advance.charge(A, 1, 0, 0.0)
    computed = 110 + 2 * 20
    assert computed <= fair.counter("a") <= computed + 50


def test_pulls_that_find_nothing_cost_once() -> None:
    fair = fair_share()
    advance = Advance(fair)
    advance.charge(A, 40, 0, 0.0)
    for _ in range(10):
        advance.pay(A, 1, 0.0)
    assert fair.counter("a") == 80
    advance.charge(A, 40, 0, 0.0)
    assert fair.counter("a") == 80
