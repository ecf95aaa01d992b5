"""What every worker epoch has served, and how far counters were lifted: state that only grows, so merging is maximum.

Any two ledgers that have received the same entries are equal, in whatever order and however often they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple, TypeAlias

import msgspec

from .wire import EpochTotals, Gossip, Lift, ServedTotal

MAX_ENTRIES = 1000
"""Entries in one gossip message: with the longest tenant names a third of the broker's 1 MB payload limit."""
_NUM_REPEATED = 8
"""Entries that each message repeats in turn, so that a lost message is made good without anybody asking."""

Account: TypeAlias = tuple[str, str]
"""Service class and tenant."""


class Origin(NamedTuple):
    """Whose totals: one run of one worker process."""

    worker: str
    epoch: str


class Served(msgspec.Struct):
    """Weighted tokens, and the same divided by the weight that was in force as each was served."""

    total: float = 0.0
    virtual: float = 0.0


_Entry: TypeAlias = tuple[Origin | None, Account]


class Ledger:
    """Grow-only totals by worker epoch, class and tenant, their sums, and what is still to be told to the others."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.served: dict[Origin, dict[Account, Served]] = {origin: {}}
        self.lifts: dict[Account, float] = {}
        self._virtual: dict[str, float] = {}
        self._totals: dict[Account, float] = {}
        self._changed: dict[_Entry, None] = {}
        self._owed: dict[Origin | None, dict[Account, None]] = {}
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

    def charge(self, account: Account, total: float, virtual: float) -> None:
        """Add own service. The account's lift is told along with it: a lift matters once somebody acts on it."""
        mine = self.served[self.origin].get(account, Served())
        self._raise(self.origin, account, mine.total + total, mine.virtual + virtual)
        self._changed[(self.origin, account)] = None
        if account in self.lifts:
            self._changed[(None, account)] = None

    def lift(self, account: Account, level: float) -> None:
        """Raise an account's lift to a level; a lower one changes nothing."""
        if level > self.lifts.get(account, 0.0):
            self.lifts[account] = level

    def merge(self, gossip: Gossip) -> None:
        self._merge_totals(Origin(gossip.worker, gossip.epoch), gossip.totals)
        for epoch in gossip.gone:
            self._merge_totals(Origin(epoch.worker, epoch.epoch), epoch.totals)
        for lift in gossip.lifts:
            self.lift((lift.service_class, lift.tenant), lift.level)

    def owe(self, origin: Origin | None) -> None:
        """Tell again all that is known of one epoch, or of the lifts (None)."""
        self._owed[origin] = dict.fromkeys(self.lifts if origin is None else self.served.get(origin, {}))

    def leave_to(self, origin: Origin) -> None:
        """An epoch speaks for itself again."""
        self._owed.pop(origin, None)

    def entries(
        self, gone: Iterable[Origin]
    ) -> tuple[tuple[ServedTotal, ...], tuple[Lift, ...], tuple[EpochTotals, ...]]:
        """The next message's own totals, lifts and totals of epochs that are gone.

        What changed comes first, then what is owed, then a few entries in turn: own ones, and with `gone` (the
        epochs that this worker looks after) theirs and the lifts too.
        """
        batch: dict[_Entry, None] = {}
        for entry in list(islice(self._changed, MAX_ENTRIES // 2 if self._owed else MAX_ENTRIES)):
            del self._changed[entry]
            batch[entry] = None
        for origin, accounts in list(self._owed.items()):
            for account in list(islice(accounts, MAX_ENTRIES - len(batch))):
                del accounts[account]
                batch[(origin, account)] = None
            if not accounts:
                del self._owed[origin]
        for _ in range(min(_NUM_REPEATED, MAX_ENTRIES - len(batch))):
            entry_in_turn = self._next_in_turn(gone)
            if entry_in_turn is None:
                break
            batch[entry_in_turn] = None
        return self._write(batch)

    def _next_in_turn(self, gone: Iterable[Origin]) -> _Entry | None:
        entry = next(self._round, None)
        if entry is None:
            everything: list[_Entry] = [(self.origin, account) for account in self.served[self.origin]]
            looked_after = list(gone)
            for origin in looked_after:
                everything.extend((origin, account) for account in self.served.get(origin, ()))
            if looked_after:
                everything.extend((None, account) for account in self.lifts)
            self._round = iter(everything)
            return next(self._round, None)
        return entry

    def _write(
        self, batch: Iterable[_Entry]
    ) -> tuple[tuple[ServedTotal, ...], tuple[Lift, ...], tuple[EpochTotals, ...]]:
        lifts: list[Lift] = []
        totals: dict[Origin, list[ServedTotal]] = {self.origin: []}
        for origin, account in batch:
            service_class, tenant = account
            if origin is None:
                lifts.append(Lift(service_class=service_class, tenant=tenant, level=self.lifts[account]))
                continue
            served = self.served[origin][account]
            totals.setdefault(origin, []).append(
                ServedTotal(service_class=service_class, tenant=tenant, total=served.total, virtual=served.virtual)
            )
        own = tuple(totals.pop(self.origin))
        gone = tuple(EpochTotals(worker=o.worker, epoch=o.epoch, totals=tuple(t)) for o, t in totals.items())
        return own, tuple(lifts), gone

    def _merge_totals(self, origin: Origin, totals: Iterable[ServedTotal]) -> None:
        known = self.served.setdefault(origin, {})
        for entry in totals:
            account = entry.service_class, entry.tenant
            served = known.get(account)
            if served is None or entry.total > served.total or entry.virtual > served.virtual:
                self._raise(origin, account, entry.total, entry.virtual)

    def _raise(self, origin: Origin, account: Account, total: float, virtual: float) -> None:
        """Raise an entry and the sums it is part of to at least these values."""
        accounts = self.served.setdefault(origin, {})
        served = accounts.get(account)
        if served is None:
            served = accounts[account] = Served()
        if total > served.total:
            self._totals[account] = self._totals.get(account, 0.0) + total - served.total
            served.total = total
        if virtual > served.virtual:
            tenant = account[1]
            self._virtual[tenant] = self._virtual.get(tenant, 0.0) + virtual - served.virtual
            served.virtual = virtual
