"""The line of tenants that wait in one service class."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection


class Line:
    """Tenants that wait in one class, least counter first, then who has not been chosen since it began to wait, then
    whoever was chosen longest ago.

    Counters only grow, so the key of a tenant in the heap is a lower bound and is corrected when it surfaces: a charge
    costs nothing here, a choice the logarithm of the number of tenants. Turns grow too, but for a tenant that comes
    back to the very counter it left with, which then keeps its old place among its equals.
    """

    def __init__(self, counter: Callable[[str], float]) -> None:
        self.waiting: dict[str, int] = {}
        self.last_left: str | None = None
        self._counter = counter
        self._heap: list[tuple[float, int, str]] = []
        self._in_heap: set[str] = set()
        self._turns: dict[str, int] = {}
        self._num_turns = 0

    def join(self, tenant: str, num_waiting: int) -> None:
        if tenant not in self.waiting:
            # Lifted to the least counter, it would else stand behind the tenant that it was lifted to.
            self._turns.pop(tenant, None)
        self.waiting[tenant] = num_waiting
        if tenant not in self._in_heap:
            self._in_heap.add(tenant)
            heapq.heappush(self._heap, self._key(tenant))

    def leave(self, tenant: str) -> bool:
        """Whether the tenant was waiting until now."""
        if self.waiting.pop(tenant, None) is None:
            return False
        self.last_left = tenant
        return True

    def move_back(self, tenant: str) -> None:
        """Put a tenant behind all that have the same counter."""
        self._num_turns += 1
        self._turns[tenant] = self._num_turns

    def first(self, shut: Collection[str] = ()) -> str | None:
        """The tenant whose turn it is, those in `shut` left out."""
        skipped: list[tuple[float, int, str]] = []
        found: str | None = None
        while self._heap and found is None:
            tenant = self._heap[0][2]
            if tenant not in self.waiting:
                heapq.heappop(self._heap)
                self._in_heap.remove(tenant)
            elif self._heap[0] != (key := self._key(tenant)):
                heapq.heapreplace(self._heap, key)
            elif tenant in shut:
                skipped.append(heapq.heappop(self._heap))
            else:
                found = tenant
        for key in skipped:
            heapq.heappush(self._heap, key)
        return found

    def _key(self, tenant: str) -> tuple[float, int, str]:
        return self._counter(tenant), self._turns.get(tenant, 0), tenant
