from __future__ import annotations

from inferflux.workers.engine.breakeven import BreakEven


def test_what_was_never_measured_favours_reading() -> None:
    policy = BreakEven()
    assert policy.prefers_reading(1 << 40, 1)
    policy.observe_read(1, 10.0)
    assert policy.prefers_reading(1 << 40, 1)
    assert policy.patience_s(1000) == 1.0


def test_the_faster_of_both_is_chosen() -> None:
    policy = BreakEven()
    policy.observe_read(1000, 1.0)
    policy.observe_prefill(100, 1.0)
    assert policy.prefers_reading(900, 100)
    assert not policy.prefers_reading(2000, 100)
    assert policy.patience_s(300) == 3.0


def test_recent_observations_weigh_most() -> None:
    policy = BreakEven()
    policy.observe_prefill(100, 1.0)
    for _ in range(30):
        policy.observe_read(100, 1.0)
    assert not policy.prefers_reading(1000, 200)
    for _ in range(30):
        policy.observe_read(1000, 1.0)
    assert policy.prefers_reading(1000, 200)


def test_a_disk_that_was_slow_once_is_tried_again() -> None:
    policy = BreakEven()
    policy.observe_read(100, 1.0)
    policy.observe_prefill(100, 1.0)
    refusals = [policy.prefers_reading(200, 100) for _ in range(20)]
    assert not refusals[0]
    assert any(refusals)
