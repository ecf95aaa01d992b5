"""Which prompts nobody will start any more, and which lanes are worth a look: pure."""

from __future__ import annotations

import pytest

from inferflux.api.overdue import LOOK_S, MARGIN_S, ORPHAN_S, Agenda, Case, verdict
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.requests import Claim
from inferflux.config.settings import QueueSettings

SETTINGS = QueueSettings(no_backend_grace_s=10, lease_s=15)
NOW_S = 1000.0


def ends(case: Case, *, absent_s: float = 0.0, now_s: float = NOW_S) -> str | None:
    why = verdict(case, now_s=now_s, absent_s=absent_s, settings=SETTINGS)
    return None if why is None else why.code


@pytest.mark.parametrize("state", [None, "released"])
def test_queued_ends_after_its_deadline_and_a_margin_for_workers(state: str | None) -> None:
    claim = Claim(worker="w", state="released") if state else None
    late = Case("m", NOW_S - 100, NOW_S - MARGIN_S - 0.1, claim)

    assert ends(late) == "queue_timeout"
    assert ends(Case("m", NOW_S - 100, NOW_S - MARGIN_S + 0.1, claim)) is None
    assert ends(Case("m", NOW_S - 100, None, claim)) is None
    assert ends(late, absent_s=99) == "queue_timeout"


def test_without_a_worker_it_waits_the_grace_from_when_both_began() -> None:
    assert ends(Case("m", NOW_S - 100), absent_s=9.9) is None
    assert ends(Case("m", NOW_S - 100), absent_s=10) == "no_backend"
    assert ends(Case("m", NOW_S - 9.9), absent_s=100) is None
    assert ends(Case("m", NOW_S - 10), absent_s=100) == "no_backend"


def test_batch_work_waits_for_a_worker_until_its_deadline() -> None:
    claim = Claim(worker="w", at=NOW_S - 50)

    assert ends(Case("m", NOW_S - 100, None, batch=True), absent_s=99) is None
    assert ends(Case("m", NOW_S - 100, NOW_S + 1, batch=True), absent_s=99) is None
    assert ends(Case("m", NOW_S - 100, NOW_S - MARGIN_S - 0.1, batch=True), absent_s=99) == "queue_timeout"
    assert ends(Case("m", NOW_S - 100, NOW_S + 1, claim, batch=True), absent_s=200) is None
    assert ends(Case("m", NOW_S - 100, NOW_S - 16, claim, batch=True), absent_s=200) == "no_backend"


def test_running_is_left_to_its_worker_and_to_redelivery() -> None:
    running = Claim(worker="w", at=NOW_S - 50)
    late = NOW_S - 50

    assert ends(Case("m", NOW_S - 100, late, running, alive=True), absent_s=99) is None
    assert ends(Case("m", NOW_S - 100, late, running)) is None
    assert ends(Case("m", NOW_S - 100, late, running), absent_s=24.9) is None
    assert ends(Case("m", NOW_S - 100, late, running), absent_s=25) == "no_backend"


def test_prompt_that_took_the_last_workers_along_is_given_up() -> None:
    for num_attempts, code in ((2, "no_backend"), (3, "attempts_exhausted")):
        claim = Claim(worker="w", at=NOW_S - 50, num_attempts=num_attempts)
        assert ends(Case("m", NOW_S - 100, None, claim), absent_s=25) == code
        assert ends(Case("m", NOW_S - 100, None, claim)) is None
    released = Claim(worker="w", state="released", num_attempts=3)
    assert ends(Case("m", NOW_S - 100, None, released), absent_s=25) == "no_backend"


def test_cancelled_is_completed_when_the_canceller_must_have_died() -> None:
    claim = Claim(worker="a-x", state="cancelled", at=NOW_S)

    assert ends(Case("m", 0.0, 1.0, claim), now_s=NOW_S + ORPHAN_S, absent_s=99) is None
    assert ends(Case("m", 0.0, 1.0, claim), now_s=NOW_S + ORPHAN_S + 0.1) == "cancelled"


A, B = (Lane("m", ServiceClass.DEFAULT, tenant) for tenant in ("a", "b"))


class Looks:
    """An agenda with a settable absence."""

    def __init__(self) -> None:
        self.agenda = Agenda(SETTINGS)
        self.absent_s = 0.0

    def due(self, now_s: float, *lanes: Lane) -> list[Lane]:
        return self.agenda.due(set(lanes), now_s, lambda _: self.absent_s)


def test_new_lane_is_due_and_then_not_before_its_first_prompt() -> None:
    looks = Looks()
    assert looks.due(NOW_S, A, B) == [A, B]

    looks.agenda.looked(A, Case("m", NOW_S, NOW_S + 5), NOW_S)
    looks.agenda.looked(B, Case("m", NOW_S), NOW_S)

    assert looks.due(NOW_S + 5 + MARGIN_S - 0.1, A, B) == []
    assert looks.due(NOW_S + 5 + MARGIN_S, A, B) == [A]
    assert looks.due(NOW_S + LOOK_S, A, B) == [A, B]


def test_model_without_worker_makes_a_lane_due_after_the_grace() -> None:
    looks = Looks()
    looks.agenda.looked(A, Case("m", NOW_S, NOW_S + 500), NOW_S)
    looks.absent_s = 9.0
    assert looks.due(NOW_S + 20, A) == []
    looks.absent_s = 10.0
    assert looks.due(NOW_S + 9, A) == []
    assert looks.due(NOW_S + 10, A) == [A]


def test_lane_whose_prompts_all_run_is_due_at_once_without_a_worker() -> None:
    looks = Looks()
    looks.agenda.looked(A, None, NOW_S)
    assert looks.due(NOW_S + 1, A) == []
    looks.absent_s = 10.0
    assert looks.due(NOW_S + 1, A) == [A]


def test_look_that_stopped_halfway_goes_on_there() -> None:
    looks = Looks()
    assert looks.agenda.after_seq(A) == 0
    looks.agenda.stopped(A, 42, NOW_S)

    assert looks.due(NOW_S, A) == [A]
    assert looks.agenda.after_seq(A) == 42
    looks.agenda.looked(A, None, NOW_S)
    assert looks.agenda.after_seq(A) == 0


def test_lane_that_went_is_forgotten() -> None:
    looks = Looks()
    looks.agenda.stopped(A, 42, NOW_S)
    looks.agenda.looked(B, None, NOW_S)

    assert looks.due(NOW_S + 1, B) == []
    assert looks.agenda.after_seq(A) == 0
    assert looks.due(NOW_S + 1, A, B) == [A]
