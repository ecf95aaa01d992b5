"""The laws of the ledger: merging is commutative, associative, idempotent, and loses nothing for good."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker import ledger as ledger_module
from inferflux.broker.ledger import NUM_KEPT, Account, Chapter, Ledger, Origin
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import Gossip, decode_gossip

ORIGINS = [Origin("w0", "e1"), Origin("w0", "e2"), Origin("w1", "e1")]
ACCOUNTS: list[Account] = [("default", "a"), ("batch", "a"), ("default", "b")]

events = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(ACCOUNTS), st.integers(1, 100), st.booleans()),
    min_size=1,
    max_size=30,
)


def message(ledger: Ledger, gone: Iterable[Origin] | None = None) -> Gossip:
    told = ledger.entries(gone)
    gossip = Gossip(
        worker=ledger.origin.worker,
        epoch=ledger.origin.epoch,
        model="m",
        at=0.0,
        totals=told.totals,
        lifts=told.lifts,
        generation=ledger.generation,
        chapters=told.chapters,
        base=told.base,
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
    entries = [{c: accounts for c, accounts in ledger.served.items() if accounts} for ledger in (one, other)]
    return (
        entries[0] == entries[1]
        and one.base == other.base
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
    chapter = Chapter(dead.origin, 0)
    assert reader.served[chapter] == dead.served[chapter]


def test_an_epoch_that_speaks_again_needs_no_spokesman() -> None:
    survivor, dead = Ledger(ORIGINS[2]), Ledger(ORIGINS[0])
    dead.charge(("default", "a"), 1.0, 1.0)
    survivor.merge(message(dead))
    survivor.owe(dead.origin)
    survivor.leave_to(dead.origin)
    assert survivor.num_owed == 0


deeds = st.lists(
    st.tuples(st.sampled_from(("charge", "tell", "tell", "advance", "restart")), st.integers(0, 2), st.randoms()),
    min_size=1,
    max_size=60,
)


class World:
    """Three workers that serve, restart and begin generations; half of what they say to each other is lost."""

    def __init__(self) -> None:
        self.num_epochs = 3
        self.ledgers = [Ledger(Origin(f"w{number}", "e0")) for number in range(3)]
        self.truth: Counter[str] = Counter()

    def do(self, deed: str, number: int, rng: random.Random, loss: float = 0.5) -> None:
        ledger = self.ledgers[number]
        match deed:
            case "charge":
                account, amount = rng.choice(ACCOUNTS), rng.randint(1, 100)
                ledger.charge(account, float(amount), float(amount))
                self.truth[account[1]] += amount
            case "tell":
                self.tell(number, rng, loss)
            case "advance":
                ledger.advance(ledger.generation + 1)
            case "restart":
                self.num_epochs += 1
                self.ledgers[number] = Ledger(Origin(f"w{number}", f"e{self.num_epochs}"))

    def tell(self, number: int, rng: random.Random, loss: float) -> None:
        """All that one of them knows, as whoever speaks for those that are gone."""
        ledger = self.ledgers[number]
        for origin in (*ledger.origins(), None):
            ledger.owe(origin)
        gossip = message(ledger, ledger.origins())
        for other in self.ledgers:
            if other is not ledger and rng.random() >= loss:
                other.merge(gossip)

    def check(self, before: list[Counter[str]]) -> list[Counter[str]]:
        """Nobody counts more than was served, and no counter fell unless its worker began anew."""
        after = [Counter({tenant: int(ledger.virtual(tenant)) for _, tenant in ACCOUNTS}) for ledger in self.ledgers]
        for known in after:
            assert known <= self.truth, (known, self.truth)
        for old, new in zip(before, after, strict=True):
            assert old <= new, (old, new)
        return after


@given(deeds)
def test_folding_counts_nothing_twice_and_lets_no_counter_fall(deeds: list[tuple[str, int, random.Random]]) -> None:
    world = World()
    seen = [Counter[str]() for _ in world.ledgers]
    for deed, number, rng in deeds:
        world.do(deed, number, rng)
        if deed == "restart":
            seen[number] = Counter()
        seen = world.check(seen)
    for _ in range(2):
        for number, _ in enumerate(world.ledgers):
            world.tell(number, random.Random(0), loss=0.0)
    assert same(world.ledgers[0], world.ledgers[1])
    assert same(world.ledgers[1], world.ledgers[2])


@given(deeds)
def test_who_hears_everything_knows_everything_through_all_generations(
    deeds: list[tuple[str, int, random.Random]],
) -> None:
    world = World()
    for deed, number, rng in deeds:
        world.do(deed, number, rng, loss=0.0)
        world.tell(number, rng, loss=0.0)
        if deed == "restart":
            world.tell((number + 1) % 3, rng, loss=0.0)
    assert all(ledger.virtual(tenant) == world.truth[tenant] for ledger in world.ledgers for _, tenant in ACCOUNTS)


def test_epochs_do_not_pile_up() -> None:
    """A thousand restarts in a hundred generations: what is kept apart is what served in two of them."""
    survivor = Ledger(Origin("w1", "e1"))
    for number in range(1000):
        dead = Ledger(Origin("w0", f"e{number}"))
        dead.advance(number // 10)
        dead.charge(("default", "a"), 2.0, 1.0)
        survivor.merge(message(dead))
    assert len(survivor.served) <= NUM_KEPT * 11
    assert (survivor.total(("default", "a")), survivor.virtual("a")) == (2000.0, 1000.0)


def test_a_chapter_that_was_folded_is_not_counted_again() -> None:
    reader, writer = Ledger(Origin("w0", "e1")), Ledger(Origin("w1", "e1"))
    writer.charge(("default", "a"), 5.0, 5.0)
    late = message(writer)
    reader.merge(late)
    reader.advance(NUM_KEPT)
    reader.merge(late)
    assert reader.virtual("a") == 5.0
    assert reader.base.keys() == {("default", "a")}
