from __future__ import annotations

import pytest

from inferflux.api.outlook import MAX_RETRY_S, RATE_WINDOW_S, DrainRate, ModelQueue, retry_after_s
from inferflux.broker.subjects import Lane, ServiceClass

PRIORITY, DEFAULT, BATCH = ServiceClass
A, B, C = (Lane("m", DEFAULT, tenant) for tenant in "abc")
FLEX, HIGH = Lane("m", BATCH, "a"), Lane("m", PRIORITY, "a")


def test_rate_is_that_of_the_last_minute() -> None:
    rate = DrainRate()
    assert rate.per_s(0.0) is None
    rate.ended(0.0)
    assert rate.per_s(1.0) is None
    for second in range(1, 11):
        rate.ended(float(second))
    assert rate.per_s(10.0) == 1.0
    assert rate.per_s(20.0) == 0.5
    assert rate.per_s(10.0 + RATE_WINDOW_S + 1) is None


def test_alone_in_its_lane_a_prompt_waits_for_those_before_it() -> None:
    queue = ModelQueue({A: 10}, num_running=4)
    assert [queue.position(A, num_ahead) for num_ahead in (0, 4, 5, 9)] == [1, 1, 2, 6]
    assert queue.num_before(A, 6) == 6


def test_lanes_take_turns() -> None:
    queue = ModelQueue({A: 100, B: 3, C: 1}, num_running=0)
    assert queue.num_lanes == 3
    assert queue.num_before(C, 1) == 3
    assert queue.num_before(B, 3) == 3 + 3 + 1
    assert queue.num_before(A, 100) == 104


def test_slots_are_shared_before_anybody_waits() -> None:
    queue = ModelQueue({A: 100, B: 2}, num_running=8)
    assert queue.num_lanes == 1
    assert queue.position(A, 99) == 94
    assert queue.position(B, 1) == 1


def test_higher_classes_go_first_and_lower_ones_do_not_count() -> None:
    queue = ModelQueue({A: 2, FLEX: 50, HIGH: 5}, num_running=0)
    assert queue.num_before(HIGH, 1) == 1
    assert queue.num_before(A, 1) == 6
    assert queue.num_before(FLEX, 1) == 8


def test_more_running_than_stored_is_survived() -> None:
    queue = ModelQueue({A: 1}, num_running=9)
    assert queue.position(A, 0) == 1
    assert ModelQueue({}, num_running=3).num_before(A, 2) == 2


@pytest.mark.parametrize(
    ("depth", "rate", "expected"),
    [(5, None, 1.0), (0, 0.5, 2.0), (5, 0.5, 2.0), (5, 100.0, 1.0), (5, 1e-6, MAX_RETRY_S)],
)
def test_retry_after_is_one_turn_of_each_lane(depth: int, rate: float | None, expected: float) -> None:
    assert retry_after_s(ModelQueue({A: depth}, num_running=0), rate) == expected
