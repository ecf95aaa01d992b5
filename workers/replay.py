"""What earlier attempts left on the tape, as the point from which the next attempt goes on."""

from __future__ import annotations

import msgspec

from inferflux.broker.broker import Tape
from inferflux.broker.wire import Frame, decode_frame

from .seal import RequestSeal


class ReplayedChoice(msgspec.Struct):
    """The contiguous tokens of one choice; `finished` when its finish reason is on the tape too."""

    tokens: tuple[int, ...] = ()
    finished: bool = False


class Replay:
    """Reads a tape: gaps end a choice, repetitions are skipped, and what cannot be unsealed did not happen."""

    def __init__(self, tape: Tape, seal: RequestSeal) -> None:
        self.terminal: Frame | None = None
        self._choices: dict[int, ReplayedChoice] = {}
        frames = [decode_frame(entry.body) for entry in tape.frames]
        self.terminal = next((frame for frame in frames if frame.terminal), None)
        for frame in sorted(frames, key=lambda frame: (frame.choice, frame.index, -frame.num_tokens)):
            self._append(frame, seal)

    def choice(self, number: int) -> ReplayedChoice:
        return self._choices.get(number, ReplayedChoice())

    def _append(self, frame: Frame, seal: RequestSeal) -> None:
        choice = self._choices.setdefault(frame.choice, ReplayedChoice())
        if frame.error is not None or choice.finished or frame.index != len(choice.tokens):
            return
        tokens = seal.unseal(frame)
        if tokens is None:
            return
        choice.tokens += tokens
        choice.finished = frame.finish_reason is not None or frame.embedding is not None


EMPTY = Tape(None, 0, ())
