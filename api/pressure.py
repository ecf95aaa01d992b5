"""Pressure: how full the tape and the queues are, looked up once an interval and not for each request."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from functools import partial

from inferflux.broker.broker import Broker
from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import Lane
from inferflux.config.logs import get_logger
from inferflux.registry.fleet import Fleet

from .outlook import DrainRate, ModelQueue, Outlook, Place, retry_after_s
from .rounds import Rounds

log = get_logger("api")

INTERVAL_S = 1.0


class Pressure:
    """A queue is what the streams held at the last look, plus what this replica admitted since: with several replicas
    a bound may be overrun by what the others admit within one interval. `num_replicas` scales the rate at which
    answers end here to that of the fleet."""

    def __init__(self, broker: Broker, fleet: Fleet) -> None:
        self.tape_fill = 0.0
        self.answering = False
        self.num_replicas = 1
        self._broker = broker
        self._fleet = fleet
        self._stored: Counter[Lane] = Counter()
        self._admitted: Counter[Lane] = Counter()
        self._ever_admitted: Counter[Lane] = Counter()
        self._rates: defaultdict[str, DrainRate] = defaultdict(DrainRate)
        self._queues: dict[str, ModelQueue] = {}
        self.rounds = Rounds("pressure", self.look, INTERVAL_S)

    async def start(self) -> None:
        await self.look()
        self.rounds.start()

    async def close(self) -> None:
        await self.rounds.close()

    def num_queued(self, tenant: str) -> int:
        """Prompts of a tenant, waiting and running, over all models and classes."""
        return sum(
            count
            for counts in (self._stored, self._admitted)
            for lane, count in counts.items()
            if lane.tenant == tenant
        )

    def admit(self, lane: Lane) -> Place:
        """Count a prompt that was stored just now; its place in the lane."""
        num_ahead = self._stored[lane] + self._admitted[lane]
        self._admitted[lane] += 1
        self._ever_admitted[lane] += 1
        return Place(num_ahead, partial(self._outlook, lane, self._ever_admitted[lane]))

    def ended(self, model: str) -> None:
        """Count an answer that has come to its end."""
        self._rates[model].ended(time.monotonic())

    def retry_after_s(self, model: str) -> float:
        """When to try again, for somebody whom this model has no room for."""
        return retry_after_s(self._queue(model), self._rate(model))

    async def look(self) -> None:
        """Ask the broker now. Where it gives no answer, the last one stands."""
        admitted = self._admitted.copy()
        try:
            self.tape_fill = await self._broker.tape_fill()
            self._stored = Counter(await self._broker.backlog())
            self._admitted -= admitted
            self._queues.clear()
        except BrokerError as error:
            if self.answering:
                log.warning("broker does not answer", reason=str(error))
            self.answering = False
        except Exception:
            self.answering = False
            raise
        else:
            self.answering = True

    def _outlook(self, lane: Lane, number: int, place: Place) -> Outlook:
        # Whoever came later is behind; whoever else is gone from the lane was ahead.
        num_behind = self._ever_admitted[lane] - number
        num_stored = self._stored[lane] + self._admitted[lane]
        place.num_ahead = max(0, min(place.num_ahead, num_stored - num_behind - 1))
        queue, rate = self._queue(lane.model), self._rate(lane.model)
        position = queue.position(lane, place.num_ahead)
        return Outlook(position, queue.num_before(lane, position) / rate if rate else None)

    def _rate(self, model: str) -> float | None:
        rate = self._rates[model].per_s(time.monotonic()) if model in self._rates else None
        return None if rate is None else rate * self.num_replicas

    def _queue(self, model: str) -> ModelQueue:
        queue = self._queues.get(model)
        if queue is None:
            depths = {lane: count for lane, count in self._stored.items() if lane.model == model and count > 0}
            num_running = sum(beat.num_running for beat in self._fleet.models(model))
            queue = self._queues[model] = ModelQueue(depths, num_running)
        return queue
