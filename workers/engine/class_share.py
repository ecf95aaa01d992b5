"""What batch sequences were served here lately, against the classes above them."""

from __future__ import annotations

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.window import Window


class ClassShare:
    """Batch is owed while it got less than `min_share` of the weighted tokens that went to the classes above it."""

    def __init__(self, min_share: float, window_s: float, *, input_cost: float, output_cost: float) -> None:
        self.min_share = min_share
        self._input_cost = input_cost
        self._output_cost = output_cost
        self._window = Window(window_s)

    def charge(self, service_class: ServiceClass, *, num_input: int, num_output: int, now_s: float) -> None:
        """Tokens served for the first time: what is computed again after a preemption is not."""
        self._window.add(service_class, self._input_cost * num_input + self._output_cost * num_output, now_s)

    def batch_is_owed(self, now_s: float) -> bool:
        batch = self._window.total(ServiceClass.BATCH, now_s)
        above = sum(self._window.total(each, now_s) for each in ServiceClass if each is not ServiceClass.BATCH)
        return batch < self.min_share * above
