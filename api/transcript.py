"""The transcript: which of the frames that arrive are news, each choice on its own."""

from __future__ import annotations

from enum import Enum, auto

from inferflux.broker.wire.requests import Frame


class Verdict(Enum):
    """What a frame is to a reader who has seen everything before it. An ENDING has only its finish reason to say."""

    NEW = auto()
    OLD = auto()
    ENDING = auto()
    HOLE = auto()
    DIVERGED = auto()


class _Choice:
    __slots__ = ("attempt", "finished", "hash", "num_tokens", "spoke")

    def __init__(self) -> None:
        self.attempt = 0
        self.num_tokens = 0
        self.hash: str | None = None
        self.spoke = False
        self.finished = False


class Transcript:
    """Frames may be sent again, and a new attempt may repeat what an earlier one said: text passes once.

    A new attempt must continue from the hash that was last seen; where it repeats tokens, it must arrive at that
    hash. Frames of an attempt that a newer one has replaced are old.
    """

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}

    def judge(self, frame: Frame) -> Verdict:
        """Counts the frame as seen when it is NEW or an ENDING. A HOLE (tokens are missing before it) may be offered
        again."""
        choice = self._choices.get(frame.choice)
        if choice is None:
            choice = self._choices[frame.choice] = _Choice()
        if choice.finished or frame.attempt < choice.attempt:
            return Verdict.OLD
        if frame.index > choice.num_tokens:
            return Verdict.HOLE
        continues = frame.attempt == choice.attempt
        choice.attempt = frame.attempt
        end = frame.index + frame.num_tokens
        if frame.index < choice.num_tokens:
            return self._repeated(choice, frame, end)
        if not continues and choice.num_tokens and frame.prev != choice.hash:
            return Verdict.DIVERGED
        if continues and not frame.num_tokens and choice.spoke and frame.finish_reason is None:
            return Verdict.OLD
        choice.spoke = frame.num_tokens == 0
        choice.num_tokens = end
        choice.hash = frame.hash
        choice.finished = frame.finish_reason is not None or frame.embedding is not None
        return Verdict.NEW

    @staticmethod
    def _repeated(choice: _Choice, frame: Frame, end: int) -> Verdict:
        # Text cannot be cut where tokens meet, so a repetition that overlaps only partly cannot be joined.
        if end > choice.num_tokens or (end == choice.num_tokens and frame.hash != choice.hash):
            return Verdict.DIVERGED
        choice.finished = frame.finish_reason is not None
        return Verdict.ENDING if choice.finished else Verdict.OLD
