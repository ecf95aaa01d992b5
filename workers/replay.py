"""What earlier attempts left on the tape, as the point from which the next attempt goes on."""

from __future__ import annotations

import msgspec

from inferflux.broker.broker import Tape
from inferflux.broker.wire.requests import Frame, decode_frame

from .seal import RequestSeal


class ReplayedChoice(msgspec.Struct):
    """The contiguous tokens of one choice, and the end of their text; `finished` when its finish reason is on the tape
    too."""

    tokens: tuple[int, ...] = ()
    finished: bool = False
    attempt: int = 0
    hash: str | None = None
    tail: str = ""


class Replay:
    """Reads a tape in its order, as every reader does: a newer attempt goes on from where it began, and what an older
    one still wrote after that did not happen; repetitions are skipped, and a gap is waited out until it is filled."""

    def __init__(self, tape: Tape, seal: RequestSeal) -> None:
        self.terminal: Frame | None = None
        self._choices: dict[int, ReplayedChoice] = {}
        for entry in tape.frames:
            frame = decode_frame(entry.body)
            if frame.terminal and self.terminal is None:
                self.terminal = frame
            if frame.error is None:
                self._append(self._choices.setdefault(frame.choice, ReplayedChoice()), frame, seal)
        for number, choice in self._choices.items():
            # Tokens of different continuations would have another hash than their last frame: better to start over.
            if choice.tokens and seal.running_hash(number).update(choice.tokens) != choice.hash:
                self._choices[number] = ReplayedChoice()

    @property
    def begun(self) -> bool:
        """Whether an earlier attempt got as far as a token."""
        return any(choice.tokens for choice in self._choices.values())

    def choice(self, number: int) -> ReplayedChoice:
        return self._choices.get(number, ReplayedChoice())

    @staticmethod
    def _append(choice: ReplayedChoice, frame: Frame, seal: RequestSeal) -> None:
        if frame.attempt < choice.attempt or frame.index > len(choice.tokens):
            return
        if frame.attempt > choice.attempt:
            choice.attempt = frame.attempt
            choice.tokens = choice.tokens[: frame.index]
            choice.finished = False
        if choice.finished or frame.index < len(choice.tokens):
            return
        tokens = seal.unseal(frame)
        if tokens is None:
            return
        choice.tokens += tokens
        choice.hash = frame.hash
        choice.tail = frame.text or choice.tail
        choice.finished = frame.finish_reason is not None or frame.embedding is not None


EMPTY = Tape(None, 0, ())
