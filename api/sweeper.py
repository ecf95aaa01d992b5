"""The sweeper: ends prompts that nobody pulls, because their model has no worker, or none with room in time."""

from __future__ import annotations

import time

from inferflux.broker.broker import Broker, StoredPrompt
from inferflux.broker.errors import Code
from inferflux.broker.ownership import head, request_key
from inferflux.broker.stamp import Stamper
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.requests import Failure
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import QueueSettings
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.follower import FleetFollower

from .cancel import Canceller, Order
from .overdue import Agenda, Case, verdict
from .rounds import Rounds

log = get_logger("api.sweeper")

INTERVAL_S = 1.0
MAX_LOOKED = 200
"""Prompts read in one pass for lanes that are due; with its claim one takes about a millisecond."""

NUM_WALKED = 20
"""Prompts read in one pass besides, through the whole stream: they find what is out of order in its lane."""

WALK_PAUSE_S = 10.0
"""Between the end of the stream and its beginning."""


class Sweeper:
    """Every API replica has one. Claims are compare-and-set, so it does not matter who is first."""

    def __init__(
        self,
        settings: QueueSettings,
        broker: Broker,
        stamper: Stamper,
        follower: FleetFollower,
        canceller: Canceller,
        metrics: ApiMetrics,
    ) -> None:
        self._settings = settings
        self._broker = broker
        self._stamper = stamper
        self._follower = follower
        self._canceller = canceller
        self._metrics = metrics
        self._letters = DeadLetters(broker)
        self._agenda = Agenda(settings)
        self._walked_seq = 0
        self._walk_at_s = 0.0
        self.rounds = Rounds("sweeper", self.sweep, INTERVAL_S)

    async def sweep(self) -> int:
        """One pass, once the fleet is known. Returns how many prompts it ended. Raises BrokerError."""
        await self._follower.ready.wait()
        lanes = await self._broker.backlog()
        num_ended = num_looked = 0
        for lane in self._agenda.due(lanes.keys(), time.time(), self._absent_s):
            if num_looked >= MAX_LOOKED:
                break
            looked, ended = await self._look(lane, MAX_LOOKED - num_looked)
            num_looked += looked
            num_ended += ended
        return num_ended + await self._walk()

    async def _look(self, lane: Lane, budget: int) -> tuple[int, int]:
        """Through a lane from its oldest prompt, to the first that may still be started."""
        seq = self._agenda.after_seq(lane)
        num_ended = 0
        for num_looked in range(1, budget + 1):
            prompt = await self._broker.next_prompt(seq, lane)
            if prompt is None:
                self._agenda.looked(lane, None, time.time())
                return num_looked, num_ended
            case, ended = await self._judge(prompt)
            num_ended += ended
            if not ended and (case.claim is None or case.claim.state == "released"):
                self._agenda.looked(lane, case, time.time())
                return num_looked, num_ended
            seq = prompt.seq
        self._agenda.stopped(lane, seq, time.time())
        return budget, num_ended

    async def _walk(self) -> int:
        num_ended = 0
        if time.monotonic() < self._walk_at_s:
            return 0
        for _ in range(NUM_WALKED):
            prompt = await self._broker.next_prompt(self._walked_seq)
            if prompt is None:
                self._walked_seq = 0
                self._walk_at_s = time.monotonic() + WALK_PAUSE_S
                break
            self._walked_seq = prompt.seq
            num_ended += (await self._judge(prompt))[1]
        return num_ended

    async def _judge(self, prompt: StoredPrompt) -> tuple[Case, bool]:
        """End a prompt if it is due; whether it was."""
        key = request_key(prompt, self._stamper)
        last = await self._broker.last_claim(key)
        claim = last[1] if last is not None else None
        case = Case(
            model=prompt.lane.model,
            stored_s=prompt.stored_s,
            deadline_s=head(prompt.body).deadline,
            claim=claim,
            alive=claim is not None and self._follower.fleet.has_worker(claim.worker),
            batch=prompt.lane.service_class is ServiceClass.BATCH,
        )
        if claim is not None and claim.prompt not in (0, prompt.seq):
            return case, False  # a second prompt under a used id: whoever pulls it drops it
        why = verdict(case, now_s=time.time(), absent_s=self._absent_s(prompt.lane.model), settings=self._settings)
        if why is None:
            return case, False
        if why.code == Code.ATTEMPTS_EXHAUSTED:
            lost = await self._broker.claims(key)
            await self._letters.bury(key, prompt.lane, prompt.headers, prompt.body, reason=why, lost=lost)
        running = claim is not None and claim.state == "running"
        over = await self._canceller.cancel(Order(key, prompt.seq, why), unless_running=not running)
        if over:
            self._note(prompt, key.request, why)
        return case, over

    def _note(self, prompt: StoredPrompt, request: str, why: Failure) -> None:
        self._metrics.swept.labels(prompt.lane.model, why.code).inc()
        log.info(
            "swept",
            request=request,
            model=prompt.lane.model,
            tenant=prompt.lane.tenant,
            code=why.code,
            waited_s=round(time.time() - prompt.stored_s, 1),
        )

    def _absent_s(self, model: str) -> float:
        return self._follower.fleet.absent_for(model, time.monotonic())
