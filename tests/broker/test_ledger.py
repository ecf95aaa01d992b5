"""The laws of the ledger: merging is commutative, associative, idempotent, and loses nothing for good."""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker import ledger as ledger_module
from inferflux.broker.ledger import Account, Ledger, Origin
from inferflux.broker.wire import Gossip, decode_gossip, encode

ORIGINS = [Origin("w0", "e1"), Origin("w0", "e2"), Origin("w1", "e1")]
ACCOUNTS: list[Account] = [("default", "a"), ("batch", "a"), ("default", "b")]

events = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(ACCOUNTS), st.integers(1, 100), st.booleans()),
    min_size=1,
    max_size=30,
)


def message(ledger: Ledger, gone: Iterable[Origin] = ()) -> Gossip:
    totals, lifts, others = ledger.entries(gone)
    gossip = Gossip(
        worker=ledger.origin.worker,
        epoch=ledger.origin.epoch,
        model="m",
        at=0.0,
        totals=totals,
        lifts=lifts,
        gone=others,
    )
    return decode_gossip(encode(gossip))


def history(events: list[tuple[int, Account, int, bool]]) -> list[Gossip]:
    """What three epochs say while they serve and lift, one message after each event."""
    ledgers = [Ledger(origin) for origin in ORIGINS]
    messages: list[Gossip] = []
    for number, account, amount, lifts in events:
        if lifts:
            ledgers[number].lift(account, float(amount))
        ledgers[number].charge(account, float(amount), amount / 2)
        messages.append(message(ledgers[number]))
    return messages


def replica(messages: Iterable[Gossip]) -> Ledger:
    ledger = Ledger(Origin("reader", "e1"))
    for gossip in messages:
        ledger.merge(gossip)
    return ledger


def same(one: Ledger, other: Ledger) -> bool:
    """The sums are of halves of small integers, so they are exact in whatever order they were added."""
    entries = [{o: accounts for o, accounts in ledger.served.items() if accounts} for ledger in (one, other)]
    return (
        entries[0] == entries[1]
        and one.lifts == other.lifts
        and all(one.virtual(tenant) == other.virtual(tenant) for _, tenant in ACCOUNTS)
        and all(one.total(account) == other.total(account) for account in ACCOUNTS)
    )


@given(events, st.randoms())
def test_order_and_repetition_do_not_matter(events: list[tuple[int, Account, int, bool]], rng: random.Random) -> None:
    messages = history(events)
    shuffled = messages + rng.choices(messages, k=len(messages))
    rng.shuffle(shuffled)
    assert same(replica(messages), replica(shuffled))


@given(events, st.integers(0, 30))
def test_hearing_through_another_is_hearing(events: list[tuple[int, Account, int, bool]], cut: int) -> None:
    messages = history(events)
    between = replica(messages[:cut])
    for origin in (*ORIGINS, None):
        between.owe(origin)
    listener = replica(messages[cut:])
    listener.merge(message(between))
    assert same(listener, replica(messages))


@given(events)
def test_nothing_ever_falls(events: list[tuple[int, Account, int, bool]]) -> None:
    ledger = Ledger(Origin("reader", "e1"))
    for gossip in history(events):
        before = [ledger.virtual(tenant) for _, tenant in ACCOUNTS] + [ledger.total(account) for account in ACCOUNTS]
        ledger.merge(gossip)
        after = [ledger.virtual(tenant) for _, tenant in ACCOUNTS] + [ledger.total(account) for account in ACCOUNTS]
        assert all(x <= y for x, y in zip(before, after, strict=True))


@given(events, st.randoms())
def test_what_was_lost_comes_again(events: list[tuple[int, Account, int, bool]], rng: random.Random) -> None:
    """Nine messages of ten are lost; later ones repeat what was in them, without being asked."""
    ledgers = {origin: Ledger(origin) for origin in ORIGINS[:2]}
    reader, attentive = Ledger(ORIGINS[2]), Ledger(ORIGINS[2])
    for number, account, amount, _ in events:
        ledger = ledgers[ORIGINS[number % 2]]
        ledger.charge(account, float(amount), amount / 2)
        gossip = message(ledger)
        attentive.merge(gossip)
        if rng.random() < 0.1:
            reader.merge(gossip)
    for ledger in ledgers.values():
        reader.merge(message(ledger))
    assert same(reader, attentive)


def test_the_gone_are_passed_on_whole() -> None:
    survivor = Ledger(ORIGINS[2])
    dead = Ledger(ORIGINS[0])
    for number in range(2 * ledger_module.MAX_ENTRIES):
        dead.charge(("default", f"t{number}"), 1.0, 1.0)
    for _ in range(2):
        survivor.merge(message(dead))
    survivor.owe(dead.origin)
    reader = Ledger(Origin("reader", "e1"))
    num_messages = 0
    while survivor.num_owed:
        reader.merge(message(survivor))
        num_messages += 1
    assert num_messages == 2
    assert reader.served[dead.origin] == dead.served[dead.origin]


def test_an_epoch_that_speaks_again_needs_no_spokesman() -> None:
    survivor, dead = Ledger(ORIGINS[2]), Ledger(ORIGINS[0])
    dead.charge(("default", "a"), 1.0, 1.0)
    survivor.merge(message(dead))
    survivor.owe(dead.origin)
    survivor.leave_to(dead.origin)
    assert survivor.num_owed == 0
