"""The advance: prompt tokens that are charged when a prompt is pulled, before anybody has counted them."""

from __future__ import annotations

from collections import Counter

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane

SMOOTHING = 8
"""What a lane's next prompt will cost is a moving average over about as many of its last ones."""


class Advance:
    """Without it, slots that come free at once would all go to one tenant, whose prompts cost nothing yet.

    What was charged too early pays for the lane's next prompts, or goes along with a prompt that another worker takes:
    in the end a lane has paid for what was computed.
    """

    def __init__(self, fair: FairShare) -> None:
        self._fair = fair
        self._typical: dict[Lane, float] = {}
        self._paid: Counter[Lane] = Counter()

    def pay(self, lane: Lane, num_prompts: int, now_s: float) -> None:
        """Pay for a lane's prompts whose tokens have not been charged, as far as it has not yet."""
        missing = round(num_prompts * self._typical.get(lane, 1.0)) - self._paid[lane]
        if missing > 0:
            self._paid[lane] += missing
            self._fair.charge(lane, num_input=missing, now_s=now_s)

    def take(self, lane: Lane) -> int:
        """Take back what was paid for one prompt, to pay for it elsewhere or, by `put`, here after all."""
        num_paid = min(self._paid[lane], round(self._typical.get(lane, 1.0)))
        self._paid[lane] -= num_paid
        return num_paid

    def put(self, lane: Lane, num_paid: int) -> None:
        """What was paid for a prompt that is computed here, maybe by another worker."""
        self._paid[lane] += num_paid

    def charge(self, lane: Lane, num_input: int, num_output: int, now_s: float) -> None:
        """Charge what was computed, less what was paid for it."""
        if num_input:
            typical = self._typical.get(lane, float(num_input))
            self._typical[lane] = typical + (num_input - typical) / SMOOTHING
        covered = min(self._paid[lane], num_input)
        self._paid[lane] -= covered
        self._fair.charge(lane, num_input=num_input - covered, num_output=num_output, now_s=now_s)
