"""One attempt at one request: claim it, run it, end it exactly once, and only then let go of the prompt."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from typing import Literal

import msgspec

from inferflux.broker.broker import Broker, Delivery
from inferflux.broker.errors import (
    DENIALS,
    BrokerError,
    BrokerUnavailable,
    ClaimLost,
    Code,
    MessageTooLarge,
    RequestError,
)
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.requests import AnyPrompt, CompletionPrompt, Failure, Usage, failure
from inferflux.config.audit import Actor
from inferflux.config.logs import get_logger
from inferflux.config.settings import Settings
from inferflux.registry.control import Control
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.guardrails.guard import told

from .answer import Answer, End, Label, cancelled
from .bill import Bill
from .claims import RETRY_S, Claims
from .engine.job import Job
from .host import ModelHost
from .outbox import Outbox
from .prepare import echoes, prepare
from .replay import EMPTY, Replay
from .seal import RequestSeal

log = get_logger("worker.attempt")

INLINE_BYTES = 8192

_submissions = itertools.count(1)


class Task(msgspec.Struct, frozen=True):
    """A delivered prompt that was understood, or the reason why it was not. `policy_revision` says by which guardrails
    an API replica has judged it."""

    key: RequestKey
    delivery: Delivery
    seal: RequestSeal
    prompt: AnyPrompt | None
    salt: str = ""
    error: Failure | None = None
    policy_revision: int | None = None


class Attempt:
    """Runs a task to its end. `seq` is the claim's sequence in the tape, and so the attempt's number; 0 before.

    `rival` is a worker that may hold the same delivery: whoever claims first has it.
    """

    def __init__(
        self,
        task: Task,
        host: ModelHost,
        broker: Broker,
        settings: Settings,
        worker: str,
        control: Control,
        rival: str | None = None,
    ) -> None:
        self.task = task
        self.key = task.key
        self.delivery = task.delivery
        self.seq = 0
        self.num_attempts = 1
        self.outbox = Outbox(broker, task.key, settings.tape, time.monotonic, self._refused)
        self.answer: Answer | None = None
        self._claims = Claims(broker, task.key, worker, task.delivery.seq)
        self._bill = Bill(broker, control.limits, task.key, task.delivery, task.prompt)
        self.host = host
        self._broker = broker
        self._settings = settings
        self._control = control
        self._rival = rival
        self._prompt = task.prompt
        self._asked: End | None = None
        self._num_charged = 0
        self.outcome = "lost"
        self.claimed_s: float | None = None
        self._started_s = time.monotonic()
        self.name = self._new_name()

    def _new_name(self) -> str:
        """What the engine calls this submission: a step that was under way when an earlier one was cancelled still
        reports it, and must not be taken for this one."""
        return f"{self.key.owner}/{self.key.request}#{next(_submissions)}"

    @property
    def num_slots(self) -> int:
        """Sequences that this request occupies, or may come to occupy; none once its answer has ended."""
        if self.answer is None:
            return 1
        return 0 if self.answer.ended.done() else self.answer.num_open

    @property
    def charged(self) -> bool:
        """Whether its prompt has been charged."""
        return self._num_charged > 0

    def take_charges(self) -> tuple[int, int]:
        """Uncached input and output tokens since the last call. Only a first attempt's input is charged."""
        answer = self.answer
        if answer is None or not answer.num_generated:
            return 0, 0
        num_input = answer.num_uncached if self.num_attempts == 1 and not self._num_charged else 0
        num_output = answer.num_generated - self._num_charged
        self._num_charged = answer.num_generated
        return num_input, num_output

    def stop(self, how: End) -> None:
        """Cancel, or hand back to the queue. Takes effect before the engine's next step."""
        self._asked = self._asked or how
        if self.answer is not None:
            self.host.cancel(self.name)
            self.answer.end(self._asked)

    async def run(self) -> bool:
        """True when the request is over: answered here or by somebody else, so that its tape may go in a while.

        False when the prompt was handed back, its claim lost, or another prompt has its id: the request goes on.
        """
        try:
            how = await self._run_first() if self.delivery.num_delivered == 1 else None
            if how is None:
                replay = await self._claim()
                if replay is None:
                    if self.outcome == "forwarded":
                        return False
                    await self.delivery.ack()
                    return self.outcome != "joined"
                how = await self._generate(replay)
            over = await self._close(how)
            self.outcome = how.name.lower() if over or how is End.RELEASED else "lost"
        finally:
            self.host.leave(self.name)
        log.info(
            "request ended" if over else "request left",
            request=self.key.request,
            attempt=self.seq,
            how=self.outcome,
            code=self.answer.error.code if self.answer and self.answer.error else None,
            num_tokens=self.answer.num_generated if self.answer else 0,
            took_s=round(time.monotonic() - self._started_s, 3),
        )
        return over

    async def _run_first(self) -> End | None:
        """A prompt that nobody has held before: the claim travels while the engine computes, and frames wait for it.

        None when somebody has written a claim all the same; nothing was sent then.
        """
        claim = asyncio.create_task(self._put_claim("running", 0))
        await asyncio.sleep(0)  # so that it is on its way before the prompt is rendered
        try:
            return await self._generate(Replay(EMPTY, self.task.seal), claim)
        except ClaimLost:
            self.host.leave(self.name)
            self.name, self.answer = self._new_name(), None
            return None
        finally:
            claim.cancel()

    async def _claim(self) -> Replay | None:
        """Become this request's one attempt. None when it has been answered or cancelled already, or is a rival's.

        The tape is read after the claim is ours: from then on no earlier attempt can add a terminal frame.
        """
        while True:
            last = await self._claims.last()
            expected = 0
            if last is not None:
                expected, claim = last
                if claim.state == "cancelled":
                    await self._confirm_cancel(expected)
                    await self._settle_found(None)
                    return None
                if claim.prompt not in (0, self.delivery.seq):
                    log.warning("request id in use", request=self.key.request, owner=self.key.owner)
                    self.outcome = "joined"
                    await self._bill.settle(None)
                    return None
                if claim.state == "running" and claim.worker == self._rival:
                    self.outcome = "forwarded"
                    return None
                self.num_attempts = claim.num_attempts + (claim.state == "running")
            try:
                self._claimed(await self._put_claim("running", expected))
            except ClaimLost:
                continue
            break
        replay = Replay(await self._broker.read_tape(self.key), self.task.seal)
        if replay.terminal is not None:
            await self._settle_found(replay.terminal.usage)
            log.info("answered already", request=self.key.request, attempt=self.seq)
            return None
        return replay

    def _claimed(self, seq: int) -> None:
        self.seq = seq
        self.claimed_s = time.monotonic()
        log.info("claimed", request=self.key.request, attempt=seq, num_attempts=self.num_attempts)

    async def _generate(self, replay: Replay, claim: asyncio.Task[int] | None = None) -> End:
        """Run the request to the end of its answer. `claim` is still on its way. Raises ClaimLost."""
        error: Failure | None = None
        denied: RequestError | None = None
        jobs: list[Job] = []
        try:
            jobs = await self._prepare(replay)
            await self._bill.reserve(jobs, begun=replay.begun)
        except RequestError as reason:
            error = failure(reason.code, reason.message, param=reason.param, retry_after_s=reason.retry_after_s)
            denied = reason if reason.code in DENIALS else None
        label = Label(self.host.model, self.host.backend)
        self.answer = answer = Answer(self.key.request, jobs, replay, self.task.seal, label, self.outbox.send)
        answer.screen_by(self._control.guard)
        if self._asked is not None:
            answer.end(self._asked)
        elif error is not None:
            answer.fail(error)
        elif answer.open_jobs:
            if isinstance(self._prompt, CompletionPrompt) and self._prompt.echo:
                answer.echo(echoes(self._prompt, jobs, self.host.text))
            self.host.submit(self.name, answer)
        if claim is not None:
            self._claimed(await claim)
        if denied is not None:
            self._audit("request.refuse", **told(denied, self._control.audit))
        answer.begin(self.seq)
        how = await answer.ended
        for rule in answer.blocked:
            self._audit("answer.cut", guardrail=rule.guardrail)
        return how

    async def _prepare(self, replay: Replay) -> list[Job]:
        prompt, task = self.task.prompt, self.task
        if task.error is not None or prompt is None:
            error = task.error or failure(Code.INVALID_REQUEST, "the message holds no prompt")
            raise RequestError(Code(error.code), error.message, param=error.param)
        num = self._settings.queue.max_attempts
        if self.num_attempts > num:
            raise RequestError(
                Code.ATTEMPTS_EXHAUSTED, f"{num} workers were lost while they worked on this request; it is given up"
            )
        if prompt.deadline is not None and time.time() > prompt.deadline and not replay.begun:
            raise RequestError(Code.QUEUE_TIMEOUT, "the request waited longer than its deadline allows")
        self._prompt = await self._judged(prompt)
        jobs = await self._jobs(self._prompt)
        return [msgspec.structs.replace(job, resumed=replay.choice(job.choice).tokens) for job in jobs]

    async def _judged(self, prompt: AnyPrompt) -> AnyPrompt:
        """The prompt as guardrails leave it. Raises RequestError."""
        guard, task = self._control.guard, self.task
        if self._control.audit.refuses and task.policy_revision is None:
            raise RequestError(Code.AUDIT_UNAVAILABLE, "the audit log cannot be written; try again later")
        if not guard.must_judge(prompt, task.policy_revision):
            return prompt
        judged, _ = await guard.judge(prompt, self.delivery.lane, self.host.text)
        return judged

    def _audit(self, action: str, **detail: object) -> None:
        actor = Actor(tenant=self.delivery.lane.tenant, source=self.key.owner)
        self._control.audit.record(action, actor, "denied", request=self.key.request, **detail)

    async def _jobs(self, prompt: AnyPrompt) -> list[Job]:
        task, lane = self.task, self.delivery.lane
        template = Job(
            request=self.name,
            choice=0,
            prompt=(),
            max_tokens=0,
            salt=task.salt,
            service_class=lane.service_class,
            start_by=prompt.deadline,
        )

        def work() -> list[Job]:
            return prepare(
                prompt,
                self.host.renderer,
                self.host.capacity,
                request=self.name,
                seed=task.seal.seed(),
                template=template,
            )

        inline = len(self.delivery.body) <= INLINE_BYTES
        return work() if inline else await asyncio.to_thread(work)

    async def _close(self, how: End) -> bool:
        """End the request on the tape, then remove the prompt. A lost claim leaves both to its new owner."""
        assert self.answer is not None
        try:
            match how:
                case End.RELEASED:
                    await self.outbox.drain()
                    await self._put_claim("released", self.seq)
                    await self.delivery.release()
                    return False
                case End.CANCELLED:
                    self.seq = await self._put_claim("cancelled", self.seq)
                    await self._confirm_cancel(self.seq)
                case End.FINISHED | End.FAILED:
                    if self.answer.error is not None and self.answer.error.code == Code.ATTEMPTS_EXHAUSTED:
                        await self._bury(self.answer.error)
                    await self._finish(self.answer)
        except ClaimLost:
            return await self._yield_claim()
        await self._settle()
        await self.delivery.ack()
        return True

    async def _settle(self) -> None:
        """Once the end is told: a crash in between leaves it to the next attempt, which finds the end on the tape."""
        if self.delivery.num_delivered > 1 and not self._bill.num_reserved:
            # It ended before it could reserve, as one that is given up does.
            await self._settle_found(None)
            return
        answer = self.answer
        usage = None if answer is None else answer.usage
        finished = answer is not None and answer.ended.done() and answer.ended.result() is End.FINISHED
        await self._bill.settle(usage if usage is not None and (usage.completion_tokens or finished) else None)

    async def _settle_found(self, usage: Usage | None) -> None:
        """An earlier attempt told the end, or was cancelled, and may have been killed before it settled. What it has
        reserved is not known: reserving again takes nothing that was taken already."""
        prompt = self.task.prompt
        if prompt is not None and self._bill.is_limited:
            with contextlib.suppress(RequestError):
                await self._bill.reserve(await self._jobs(prompt), begun=True)
        await self._bill.settle(usage)

    async def _finish(self, answer: Answer) -> None:
        try:
            await self.outbox.finish(answer.terminal(), fence=self.seq)
        except MessageTooLarge as error:
            self._refused(error)
            await self.outbox.finish(answer.terminal(), fence=self.seq)

    def _refused(self, error: MessageTooLarge) -> None:
        """A piece of the answer cannot be stored, now or ever: without it the rest is worth nothing."""
        log.error("frame refused", request=self.key.request, reason=str(error))
        if self.answer is not None:
            self.answer.fail(
                failure(Code.ENGINE_ERROR, "a piece of the answer is larger than the message broker takes")
            )

    async def _bury(self, reason: Failure) -> None:
        """Before the end is told: a crash in between buries the prompt again, and does not lose it."""
        task, delivery = self.task, self.delivery
        while True:
            try:
                lost = (await self._broker.claims(task.key))[:-1]
                await DeadLetters(self._broker).bury(
                    task.key, delivery.lane, delivery.headers, delivery.body, reason=reason, lost=lost
                )
                return
            except BrokerUnavailable:
                await asyncio.sleep(RETRY_S)
            except BrokerError as error:
                log.error("dead letter not kept", request=task.key.request, reason=str(error))
                return

    async def _yield_claim(self) -> bool:
        last = await self._claims.last()
        if last is not None and last[1].state == "cancelled":
            await self._settle()
            await self.delivery.ack()
            return True
        if last is None:
            # The tape was lost, and with it what we had sent: start over, from the queue.
            await self.delivery.release()
        log.warning("claim lost", request=self.key.request, attempt=self.seq)
        return False

    async def _confirm_cancel(self, seq: int) -> None:
        """Whoever wrote the cancelling claim may have died before the terminal frame."""
        if Replay(await self._broker.read_tape(self.key), self.task.seal).terminal is None:
            await self.outbox.finish(cancelled(self.key.request, seq), fence=seq)

    async def _put_claim(self, state: Literal["running", "released", "cancelled"], expected: int) -> int:
        return await self._claims.put(state, expected_seq=expected, num_attempts=self.num_attempts)
