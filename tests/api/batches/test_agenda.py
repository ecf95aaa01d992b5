"""Which batches a replica takes."""

from __future__ import annotations

from typing import Any

from inferflux.api.batches.agenda import Agenda
from inferflux.api.batches.records import Kept
from inferflux.broker.wire.batches import Batch

LEASE_S = 8.0


def batch(ident: str, tenant: str = "acme", **fields: Any) -> Batch:
    defaults = {"endpoint": "", "input_file": "", "window": "24h", "created": 1.0, "expires": 9.0}
    return Batch(id=ident, tenant=tenant, **(defaults | fields))


def agenda(*batches: Batch, now_s: float = 0.0, max_running: int = 2) -> Agenda:
    made = Agenda(LEASE_S, max_running)
    for number, each in enumerate(batches, 1):
        made.hear(Kept(each, number), now_s)
    return made


def due(made: Agenda, now_s: float = 0.0) -> list[str]:
    return [kept.batch.id for kept in made.due(now_s)]


def test_the_oldest_first_and_those_that_have_begun_before_them() -> None:
    made = agenda(batch("new", created=3.0), batch("old", created=2.0), batch("begun", created=9.0, started=9.5))
    assert due(made) == ["begun", "old"]


def test_a_tenant_has_so_many_running_and_others_are_not_held_up() -> None:
    owned = [batch(f"r{number}", owner="a", status="in_progress") for number in range(2)]
    made = agenda(*owned, batch("waits"), batch("theirs", tenant="globex"))
    assert due(made) == ["theirs"]


def test_what_only_has_to_end_waits_for_nobody() -> None:
    owned = [batch(f"r{number}", owner="a", status="in_progress") for number in range(2)]
    assert due(agenda(*owned, batch("c", status="cancelling"), batch("f", status="finalizing"))) == ["c", "f"]


def test_a_silent_owner_has_lost_its_batch() -> None:
    made = agenda(batch("b", owner="a", status="in_progress"))
    assert due(made, LEASE_S - 0.1) == []
    assert due(made, LEASE_S) == ["b"]
    made.hear(Kept(batch("b", owner="a", status="in_progress"), 2), LEASE_S)
    assert due(made, LEASE_S + 1) == []


def test_the_same_entry_heard_again_is_no_sign_of_life() -> None:
    made = agenda(batch("b", owner="a", status="in_progress"))
    made.hear(Kept(batch("b", owner="a", status="in_progress"), 1), 5.0)
    assert due(made, LEASE_S) == ["b"]


def test_after_an_outage_everybody_has_a_lease() -> None:
    made = agenda(batch("b", owner="a", status="in_progress"))
    made.start_over(100.0)
    assert due(made, 100.0 + LEASE_S - 0.1) == []


def test_what_has_ended_is_forgotten() -> None:
    made = agenda(batch("b"))
    made.hear(Kept(batch("b", status="completed"), 2), 1.0)
    assert made.batches() == []
