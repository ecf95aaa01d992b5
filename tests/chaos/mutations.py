"""Mutants of the system: each takes one safeguard away, and names the scenario that must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from chaos import scenarios
from chaos.scenarios import Scenario

from inferflux.api.cancel import Canceller
from inferflux.api.transcript import Transcript, Verdict
from inferflux.broker import subjects
from inferflux.broker.jetstream_api import JetStreamApi
from inferflux.workers.answer import End
from inferflux.workers.attempt import Attempt
from inferflux.workers.host import ModelHost
from inferflux.workers.replay import EMPTY, Replay
from inferflux.workers.worker import Worker


class Mutation(NamedTuple):
    """`short` ones run with the whole suite, the others in the long form."""

    apply: Callable[[pytest.MonkeyPatch], None]
    noticed_by: Scenario
    short: bool = False


def ack_before_the_terminal_frame(patch: pytest.MonkeyPatch) -> None:
    close = Attempt._close

    async def acked_close(self: Attempt, how: End) -> bool:
        await self.delivery.ack()
        return await close(self, how)

    patch.setattr(Attempt, "_close", acked_close)


def terminal_frame_without_its_fence(patch: pytest.MonkeyPatch) -> None:
    put = JetStreamApi.put

    async def unfenced(self: JetStreamApi, stream: str, subject: str, data: bytes, headers: Any) -> int:
        if subjects.HEADER_EXPECTED_SUBJECT in headers:
            fences = (subjects.HEADER_EXPECTED_SUBJECT, subjects.HEADER_EXPECTED_SUBJECT_SEQ)
            headers = {name: value for name, value in headers.items() if name not in fences}
        return await put(self, stream, subject, data, headers)

    patch.setattr(JetStreamApi, "put", unfenced)


def claim_without_compare_and_set(patch: pytest.MonkeyPatch) -> None:
    put = JetStreamApi.put

    async def unchecked(self: JetStreamApi, stream: str, subject: str, data: bytes, headers: Any) -> int:
        if subject.endswith(".claim"):
            headers = {name: value for name, value in headers.items() if name != subjects.HEADER_EXPECTED_SUBJECT_SEQ}
        return await put(self, stream, subject, data, headers)

    patch.setattr(JetStreamApi, "put", unchecked)


def resume_without_the_tape(patch: pytest.MonkeyPatch) -> None:
    generate = Attempt._generate

    async def forgetful(self: Attempt, replay: Replay) -> End:
        return await generate(self, Replay(EMPTY, self.task.seal))

    patch.setattr(Attempt, "_generate", forgetful)


def stored_end_is_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    init = Replay.__init__

    def blind(self: Replay, *args: Any) -> None:
        init(self, *args)
        self.terminal = None

    patch.setattr(Replay, "__init__", blind)


def lease_without_progress(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ModelHost, "stalled_s", lambda self: 0.0)


def lease_is_not_extended(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Worker) -> None:
        """Leases run out."""

    patch.setattr(Worker, "_extend_forever", nothing)


def cancel_without_looking_at_the_tape(patch: pytest.MonkeyPatch) -> None:
    finish = Canceller._finish

    async def hasty(self: Canceller, order: Any, seq: int) -> None:
        class Blind:
            def __getattr__(self, name: str) -> Any:
                return getattr(broker, name)

            async def read_tape(self, *_: Any, **__: Any) -> Any:
                return EMPTY

        broker = self._broker
        blind: Any = Blind()
        self._broker = blind
        try:
            await finish(self, order, seq)
        finally:
            self._broker = broker

    patch.setattr(Canceller, "_finish", hasty)


def drain_counts_as_a_lost_worker(patch: pytest.MonkeyPatch) -> None:
    put_claim = Attempt._put_claim

    async def counted(self: Attempt, state: Any, expected: int) -> int:
        return await put_claim(self, "running" if state == "released" else state, expected)

    patch.setattr(Attempt, "_put_claim", counted)


def reader_trusts_every_frame(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Transcript, "judge", lambda self, frame: Verdict.NEW)


MUTATIONS = (
    Mutation(ack_before_the_terminal_frame, scenarios.a_worker_dies_before_its_terminal_frame, short=True),
    Mutation(terminal_frame_without_its_fence, scenarios.a_zombie_ends_what_another_worker_has_taken_over, short=True),
    Mutation(terminal_frame_without_its_fence, scenarios.a_cancel_comes_while_a_worker_ends),
    Mutation(claim_without_compare_and_set, scenarios.a_cancel_comes_while_a_worker_claims, short=True),
    Mutation(resume_without_the_tape, scenarios.a_worker_dies_in_mid_answer, short=True),
    Mutation(stored_end_is_not_looked_for, scenarios.a_worker_dies_between_terminal_frame_and_ack, short=True),
    Mutation(lease_without_progress, scenarios.an_engine_hangs),
    Mutation(lease_is_not_extended, scenarios.an_answer_takes_longer_than_its_lease),
    Mutation(cancel_without_looking_at_the_tape, scenarios.a_cancel_comes_after_the_end, short=True),
    Mutation(drain_counts_as_a_lost_worker, scenarios.a_request_is_handed_back_often),
    Mutation(reader_trusts_every_frame, scenarios.a_tape_is_lost_and_the_next_worker_says_other_words),
)
