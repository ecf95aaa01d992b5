"""What every worker epoch has served, and how far counters were lifted: state that only grows, so merging is maximum.

Any two ledgers that have received the same entries are equal, in whatever order and however often they came.

Epochs would pile up for as long as a fleet lives, so time is cut into generations. Each epoch begins new totals, a
chapter, with each generation; once two later ones have begun, that generation and those before it are folded into one
base. A base is merged by maximum like everything else, and chapters that it covers are heard no more. Whatever a ledger
knows of a chapter or of a base is at most what was really served then; so are sums and maxima of such numbers, whoever
folds when. So nothing is counted twice, and counters never fall. What may be lost is service that a worker counted in a
generation while it heard nobody for two of them: it had pulled what it served then, and could pull no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from .wire.fleet import EpochTotals, Gossip, Lift, ServedTotal

MAX_ENTRIES = 1000
"""Entries in one gossip message: with the longest tenant names a third of the broker's 1 MB payload limit."""
NUM_KEPT = 2
"""Generations whose chapters are kept apart, the one that runs among them."""
_NUM_REPEATED = 8
"""Entries that each message repeats in turn, so that a lost message is made good without anybody asking."""

Account: TypeAlias = tuple[str, str]
"""Service class and tenant."""


class Origin(NamedTuple):
    """Whose totals: one run of one worker process."""

    worker: str
    epoch: str


class Chapter(NamedTuple):
    """One worker epoch in one generation."""

    origin: Origin
    generation: int


class Served(msgspec.Struct):
    """Weighted tokens, and the same divided by the weight that was in force as each was served."""

    total: float = 0.0
    virtual: float = 0.0


class Told(NamedTuple):
    """The ledger's part of a message: own totals of this generation, lifts, other chapters, and the base."""

    totals: tuple[ServedTotal, ...]
    lifts: tuple[Lift, ...]
    chapters: tuple[EpochTotals, ...]
    base: tuple[ServedTotal, ...]


_Part: TypeAlias = Chapter | Literal["lifts", "base"]
_Entry: TypeAlias = tuple[_Part, Account]


class Ledger:
    """Grow-only totals by chapter, class and tenant, their sums, and what is still to be told to the others."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.generation = 0
        self.served: dict[Chapter, dict[Account, Served]] = {}
        self.base: dict[Account, Served] = {}
        self.lifts: dict[Account, float] = {}
        self._mine = self._open()
        self._virtual: dict[str, float] = {}
        self._totals: dict[Account, float] = {}
        self._changed: dict[_Entry, None] = {}
        self._owed: dict[_Part, dict[Account, None]] = {}
        self._round: Iterator[_Entry] = iter(())

    @property
    def num_owed(self) -> int:
        """Entries that were asked for and not sent yet."""
        return sum(map(len, self._owed.values()))

    def virtual(self, tenant: str) -> float:
        """Virtual tokens served to a tenant by everybody, in all classes."""
        return self._virtual.get(tenant, 0.0)

    def total(self, account: Account) -> float:
        """Weighted tokens served to a tenant of a class by everybody."""
        return self._totals.get(account, 0.0)

    def accounts(self) -> Iterable[Account]:
        return self._totals.keys()

    def origins(self) -> set[Origin]:
        """Every epoch that served in a generation which is not folded yet."""
        return {chapter.origin for chapter in self.served}

    def charge(self, account: Account, total: float, virtual: float) -> None:
        """Add own service. The account's lift is told along with it: a lift matters once somebody acts on it."""
        known = self.served[self._mine]
        mine = known.get(account, Served())
        self._raise(known, account, mine.total + total, mine.virtual + virtual)
        self._changed[(self._mine, account)] = None
        if account in self.lifts:
            self._changed[("lifts", account)] = None

    def lift(self, account: Account, level: float) -> None:
        """Raise an account's lift to a level; a lower one changes nothing."""
        if level > self.lifts.get(account, 0.0):
            self.lifts[account] = level

    def advance(self, generation: int) -> None:
        """Begin a generation, unless it has begun, and fold those that nobody adds to any more."""
        if generation <= self.generation:
            return
        self.generation = generation
        self._mine = self._open()
        for chapter in [each for each in self.served if self._folded(each.generation)]:
            for account, served in self.served.pop(chapter).items():
                base = self.base.setdefault(account, Served())
                base.total += served.total
                base.virtual += served.virtual
            self._owed.pop(chapter, None)
        self._changed = {entry: None for entry in self._changed if self._knows(entry[0])}
        self._round = iter(())

    def merge(self, gossip: Gossip) -> None:
        self.advance(gossip.generation)
        self._merge_chapter(Chapter(Origin(gossip.worker, gossip.epoch), gossip.generation), gossip.totals)
        for epoch in gossip.chapters:
            self._merge_chapter(Chapter(Origin(epoch.worker, epoch.epoch), epoch.generation), epoch.totals)
        self._merge(self.base, gossip.base)
        for lift in gossip.lifts:
            self.lift((lift.service_class, lift.tenant), lift.level)

    def owe(self, origin: Origin | None) -> None:
        """Tell again all that is known of one epoch, or of what is nobody's own: lifts and base (None)."""
        if origin is None:
            self._owed["lifts"] = dict.fromkeys(self.lifts)
            self._owed["base"] = dict.fromkeys(self.base)
            return
        for chapter, accounts in self.served.items():
            if chapter.origin == origin:
                self._owed[chapter] = dict.fromkeys(accounts)

    def leave_to(self, origin: Origin) -> None:
        """An epoch speaks for itself again."""
        for part in [each for each in self._owed if isinstance(each, Chapter) and each.origin == origin]:
            del self._owed[part]

    def entries(self, gone: Iterable[Origin] | None) -> Told:
        """What the next message tells.

        What changed comes first, then what is owed, then a few entries in turn: own ones, and where it falls to this
        worker to tell them (`gone` is not None) those of the epochs that are gone, the lifts and the base.
        """
        batch: dict[_Entry, None] = {}
        for entry in list(islice(self._changed, MAX_ENTRIES // 2 if self._owed else MAX_ENTRIES)):
            del self._changed[entry]
            batch[entry] = None
        for part, accounts in list(self._owed.items()):
            for account in list(islice(accounts, MAX_ENTRIES - len(batch))):
                del accounts[account]
                batch[(part, account)] = None
            if not accounts:
                del self._owed[part]
        for _ in range(min(_NUM_REPEATED, MAX_ENTRIES - len(batch))):
            entry_in_turn = self._next_in_turn(gone)
            if entry_in_turn is None:
                break
            batch[entry_in_turn] = None
        return self._write(batch)

    def _open(self) -> Chapter:
        chapter = Chapter(self.origin, self.generation)
        self.served[chapter] = {}
        return chapter

    def _folded(self, generation: int) -> bool:
        return generation <= self.generation - NUM_KEPT

    def _knows(self, part: _Part) -> bool:
        return not isinstance(part, Chapter) or part in self.served

    def _next_in_turn(self, gone: Iterable[Origin] | None) -> _Entry | None:
        entry = next(self._round, None)
        if entry is None:
            told = {self.origin, *(gone or ())}
            everything: list[_Entry] = [
                (chapter, account)
                for chapter, accounts in self.served.items()
                if chapter.origin in told
                for account in accounts
            ]
            if gone is not None:
                everything.extend(("lifts", account) for account in self.lifts)
                everything.extend(("base", account) for account in self.base)
            self._round = iter(everything)
            return next(self._round, None)
        return entry

    def _write(self, batch: Iterable[_Entry]) -> Told:
        lifts: list[Lift] = []
        totals: dict[Chapter | Literal["base"], list[ServedTotal]] = {self._mine: [], "base": []}
        for part, account in batch:
            service_class, tenant = account
            if part == "lifts":
                lifts.append(Lift(service_class=service_class, tenant=tenant, level=self.lifts[account]))
                continue
            served = (self.base if part == "base" else self.served[part])[account]
            totals.setdefault(part, []).append(
                ServedTotal(service_class=service_class, tenant=tenant, total=served.total, virtual=served.virtual)
            )
        own, base = tuple(totals.pop(self._mine)), tuple(totals.pop("base"))
        chapters = tuple(
            EpochTotals(worker=part.origin.worker, epoch=part.origin.epoch, generation=part.generation, totals=tuple(t))
            for part, t in totals.items()
            if isinstance(part, Chapter)
        )
        return Told(own, tuple(lifts), chapters, base)

    def _merge_chapter(self, chapter: Chapter, totals: Iterable[ServedTotal]) -> None:
        if not self._folded(chapter.generation):
            self._merge(self.served.setdefault(chapter, {}), totals)

    def _merge(self, known: dict[Account, Served], totals: Iterable[ServedTotal]) -> None:
        for entry in totals:
            self._raise(known, (entry.service_class, entry.tenant), entry.total, entry.virtual)

    def _raise(self, known: dict[Account, Served], account: Account, total: float, virtual: float) -> None:
        """Raise an entry and the sums it is part of to at least these values."""
        served = known.get(account)
        if served is None:
            served = known[account] = Served()
        if total > served.total:
            self._totals[account] = self._totals.get(account, 0.0) + total - served.total
            served.total = total
        if virtual > served.virtual:
            tenant = account[1]
            self._virtual[tenant] = self._virtual.get(tenant, 0.0) + virtual - served.virtual
            served.virtual = virtual
