"""Lanes: a consumer for each backlogged (model, class, tenant), made when it is first pulled from."""

from __future__ import annotations

import asyncio
import time

from inferflux.config.logs import get_logger

from . import subjects
from .broker import LaneLimits
from .delivery import NANOS, JetStreamDelivery, release
from .errors import BrokerUnavailable, TooManyLanes
from .jetstream_api import ERR_MAX_CONSUMERS, RETRY_PAUSE_S, ApiError, JetStreamApi
from .link import Link
from .packet import Packet
from .subjects import STREAM_PROMPTS, Lane

# A lane that runs as much as it may parks a pull that does not wait, unless the pull expires; and one that expires
# is kept that long on an empty lane, too. So this is how long "nothing for you" takes. It has to outlast what keeps a
# consumer from its stream, as a write that is being synchronized does: a pull that expires meanwhile is told "nothing"
# of a prompt that is there, and its lane counts as empty until the next correction.
PULL_EXPIRES_S = 0.02
PULL = b'{"batch":1,"no_wait":true,"expires":%d}' % int(PULL_EXPIRES_S * NANOS)
# Of several workers that make one consumer at the same moment, a cluster leaves some without an answer.
CREATE_TRY_S = 0.5

log = get_logger("broker")


class _Gone(Exception):
    """The lane's consumer is not there."""


class _LaneState:
    """What this process knows of one lane: the limits its consumer was made with, and the pulls under way."""

    def __init__(self) -> None:
        self.limits: LaneLimits | None = None
        self.gone = False
        self.making = asyncio.Lock()
        self.pulls: dict[str, asyncio.Future[Packet | None]] = {}
        self.used_at = 0.0


class Lanes:
    """Pulls prompts, one for each call.

    A delivered prompt bears its lane's subject and not the inbox of the pull it answers, but the pulls of one lane
    are alike: a prompt goes to the lane's oldest pull, and a refusal to its own pull or, when that one has its
    prompt already, to the oldest.
    """

    def __init__(self, link: Link, js: JetStreamApi, *, max_lanes: int) -> None:
        self._link = link
        self._js = js
        self._max_lanes = max_lanes
        self._inbox = link.inbox("p")
        self._states: dict[Lane, _LaneState] = {}
        self._pulls: dict[str, Lane] = {}
        self._num_pulls = 0
        link.on_lost.append(self._lost)

    async def open(self) -> None:
        await self._link.listen(f"{self._inbox}.*", self._on_packet)

    async def pull(self, lane: Lane, limits: LaneLimits) -> JetStreamDelivery | None:
        """The lane's next prompt, or None at once. Raises TooManyLanes, BrokerUnavailable."""
        state = self._states.setdefault(lane, _LaneState())
        state.used_at = time.monotonic()
        deadline = state.used_at + self._js.timeout_s
        while True:
            if state.limits != limits:
                await self._make_consumer(lane, state, limits)
            try:
                packet = await self._pull_once(lane, state, deadline - time.monotonic())
            except _Gone:
                # A consumer that was just made may also be unknown to our server for a moment.
                state.limits, state.gone = None, True
                if time.monotonic() + RETRY_PAUSE_S > deadline:
                    raise BrokerUnavailable(f"the consumer of {lane} does not answer") from None
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            return None if packet is None else JetStreamDelivery(self._link, self._js, lane, packet)

    async def _pull_once(self, lane: Lane, state: _LaneState, timeout_s: float) -> Packet | None:
        self._num_pulls += 1
        token = str(self._num_pulls)
        answer: asyncio.Future[Packet | None] = asyncio.get_running_loop().create_future()
        state.pulls[token] = answer
        self._pulls[token] = lane
        try:
            subject = subjects.js_api("CONSUMER", "MSG", "NEXT", STREAM_PROMPTS, subjects.consumer(lane))
            self._link.send(subject, PULL, f"{self._inbox}.{token}")
            async with asyncio.timeout(timeout_s):
                return await answer
        except (TimeoutError, asyncio.CancelledError) as error:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._hand_back(answer.result())
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable(f"a pull from {lane} was not answered") from None
            raise
        finally:
            state.pulls.pop(token, None)
            self._pulls.pop(token, None)

    async def _make_consumer(self, lane: Lane, state: _LaneState, limits: LaneLimits) -> None:
        async with state.making:
            if state.limits == limits:
                return
            self._forget_idle()
            name = subjects.consumer(lane)
            config = {
                "name": name,
                "durable_name": name,
                "filter_subject": subjects.infer(lane),
                "ack_policy": "explicit",
                "deliver_policy": "all",
                "max_deliver": -1,
                "ack_wait": int(limits.lease_s * NANOS),
                "max_ack_pending": limits.max_running,
                "inactive_threshold": int(limits.idle_s * NANOS),
            }
            if state.limits is None and await self._is_full():
                if state.gone:
                    state.gone = False
                    raise TooManyLanes(f"as many lanes are in use as queue.max_lanes allows: {self._max_lanes}")
                # Another worker may have made it: the pull will tell. Asking for the consumer itself is no way to
                # know: a cluster does not answer while it elects the consumer's leader.
                state.limits = limits
                return
            try:
                await self._js.call(
                    "CONSUMER",
                    "CREATE",
                    STREAM_PROMPTS,
                    name,
                    subjects.infer(lane),
                    body={"stream_name": STREAM_PROMPTS, "config": config},
                    try_s=CREATE_TRY_S,
                )
            except ApiError as error:
                if error.err_code == ERR_MAX_CONSUMERS:
                    raise TooManyLanes(str(error)) from error
                raise
            state.limits, state.gone = limits, False

    async def _is_full(self) -> bool:
        info = await self._js.call("STREAM", "INFO", STREAM_PROMPTS)
        return int(info["state"]["consumer_count"]) >= self._max_lanes

    def _on_packet(self, packet: Packet) -> None:
        if packet.subject.startswith(self._inbox):
            token = packet.subject.rpartition(".")[2]
            lane = self._pulls.get(token)
            answer = self._take(lane, token) if lane is not None else None
            if answer is not None:
                _refuse(answer, packet)
            return
        lane = subjects.parse_lane(packet.subject)
        answer = self._take(lane, None)
        if answer is None:
            self._hand_back(packet)
        else:
            answer.set_result(packet)

    def _take(self, lane: Lane, token: str | None) -> asyncio.Future[Packet | None] | None:
        state = self._states.get(lane)
        if state is None:
            return None
        answer = state.pulls.get(token) if token is not None else None
        if answer is not None and not answer.done():
            return answer
        return next((pull for pull in state.pulls.values() if not pull.done()), None)

    def _hand_back(self, packet: Packet | None) -> None:
        if packet is None:
            return
        try:
            release(self._link, packet)
        except BrokerUnavailable:
            log.debug("a prompt nobody waits for comes back when its lease ends")

    def _forget_idle(self) -> None:
        now_s = time.monotonic()
        for lane, state in tuple(self._states.items()):
            if state.limits is not None and not state.pulls and now_s - state.used_at > state.limits.idle_s:
                del self._states[lane]

    def _lost(self) -> None:
        for state in self._states.values():
            for answer in state.pulls.values():
                if not answer.done():
                    answer.set_exception(BrokerUnavailable("the connection to NATS was lost"))


def _refuse(answer: asyncio.Future[Packet | None], packet: Packet) -> None:
    deleted = packet.status == 409 and "deleted" in packet.description.lower()
    if packet.status == 503 or deleted:
        answer.set_exception(_Gone())
    else:
        # 404: nothing waits. 408 and 409: the lane runs as much as it may, or its leader moves.
        answer.set_result(None)
