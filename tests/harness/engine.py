"""An engine's updates, gathered by choice, and the end of a choice to wait for."""

from __future__ import annotations

import threading

from inferflux.broker.wire.requests import Failure, TokenLogprob
from inferflux.workers.engine.job import Update

TIMEOUT_S = 120.0


class Choice:
    """Everything that was reported of one choice."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self.num_endings = 0

    @property
    def tokens(self) -> list[int]:
        return [token for update in self.updates for token in update.tokens]

    @property
    def text(self) -> str:
        return "".join(update.text for update in self.updates)

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [logprob for update in self.updates for logprob in update.logprobs or ()]

    @property
    def finish_reason(self) -> str | None:
        return self.updates[-1].finish_reason if self.updates else None

    @property
    def error(self) -> Failure | None:
        return self.updates[-1].error if self.updates else None


class Recorder:
    """Give it to an engine as `on_updates`. `wait` fails when a choice goes on after its end or skips a token."""

    def __init__(self) -> None:
        self.choices: dict[tuple[str, int], Choice] = {}
        self.num_steps = 0
        self._changed = threading.Condition()
        self._broken: list[Update] = []

    def __call__(self, updates: list[Update]) -> None:
        with self._changed:
            self.num_steps += 1
            for update in updates:
                choice = self.choices.setdefault((update.request, update.choice), Choice())
                previous = choice.updates[-1] if choice.updates else None
                if choice.num_endings or (previous and update.index != previous.index + len(previous.tokens)):
                    self._broken.append(update)
                choice.updates.append(update)
                choice.num_endings += update.finish_reason is not None or update.error is not None
            self._changed.notify_all()

    def wait(self, request: str, choice: int = 0) -> Choice:
        """The choice, once it has ended."""
        key = (request, choice)
        with self._changed:
            ended = self._changed.wait_for(
                lambda: self._broken or (key in self.choices and self.choices[key].num_endings), TIMEOUT_S
            )
            assert not self._broken, f"after the end, or with a gap: {self._broken}"
            assert ended, f"{key} has not ended"
            return self.choices[key]

    def wait_for_tokens(self, request: str, count: int, choice: int = 0) -> Choice:
        """The choice, once that many of its tokens were reported."""
        key = (request, choice)
        with self._changed:
            assert self._changed.wait_for(
                lambda: key in self.choices and len(self.choices[key].tokens) >= count, TIMEOUT_S
            ), f"{key} has no {count} tokens"
            return self.choices[key]
