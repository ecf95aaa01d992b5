"""What each service class was served lately."""

from __future__ import annotations

from collections import deque

_NUM_BUCKETS = 20


class Window:
    """Weighted tokens that this worker served to each class in the last seconds, in twentieths of the window."""

    def __init__(self, window_s: float) -> None:
        self._bucket_s = max(window_s, 1e-3) / _NUM_BUCKETS
        self._buckets: dict[str, deque[list[float]]] = {}
        self._sums: dict[str, float] = {}

    def add(self, service_class: str, tokens: float, now_s: float) -> None:
        number = now_s // self._bucket_s
        buckets = self._buckets.setdefault(service_class, deque())
        if buckets and buckets[-1][0] >= number:
            buckets[-1][1] += tokens
        else:
            buckets.append([number, tokens])
        self._sums[service_class] = self._sums.get(service_class, 0.0) + tokens

    def total(self, service_class: str, now_s: float) -> float:
        buckets = self._buckets.get(service_class)
        if not buckets:
            return 0.0
        oldest = now_s // self._bucket_s - _NUM_BUCKETS
        while buckets and buckets[0][0] <= oldest:
            self._sums[service_class] -= buckets.popleft()[1]
        if not buckets:
            self._sums[service_class] = 0.0
        return self._sums[service_class]
