from __future__ import annotations

from inferflux.broker.subjects import ServiceClass
from inferflux.workers.engine.class_share import ClassShare


def share() -> ClassShare:
    return ClassShare(0.05, 10.0, input_cost=1.0, output_cost=2.0)


def test_batch_is_owed_while_it_has_less_than_its_share_of_those_above() -> None:
    counts = share()
    assert not counts.batch_is_owed(0.0)
    counts.charge(ServiceClass.PRIORITY, num_input=40, num_output=80, now_s=0.0)
    counts.charge(ServiceClass.DEFAULT, num_input=200, num_output=0, now_s=0.0)
    assert counts.batch_is_owed(0.0)
    counts.charge(ServiceClass.BATCH, num_input=19, num_output=0, now_s=1.0)
    assert counts.batch_is_owed(1.0)
    counts.charge(ServiceClass.BATCH, num_input=1, num_output=0, now_s=1.0)
    assert not counts.batch_is_owed(1.0)


def test_what_was_served_long_ago_does_not_count() -> None:
    counts = share()
    counts.charge(ServiceClass.PRIORITY, num_input=0, num_output=100, now_s=0.0)
    assert counts.batch_is_owed(5.0)
    assert not counts.batch_is_owed(20.0)
