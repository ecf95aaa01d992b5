"""The inbox: how other threads reach the engine's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import msgspec

from inferflux.config.settings import SchedulerSettings

from .job import Job


class CacheEpoch(msgspec.Struct, frozen=True):
    """Forget what was cached in other epochs; `files` deletes what was saved as well."""

    number: int
    files: bool


class Drop(msgspec.Struct, frozen=True):
    """Drop a request, or one choice of it."""

    request: str
    choice: int | None = None


Message = tuple[Job, ...] | Drop | SchedulerSettings | CacheEpoch | Future[None]
"""Jobs to add, a request to drop, new bounds, a cache to clear, or somebody who waits for a check."""


class Inbox:
    """Messages in order. Any thread may post, one takes."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._changed = threading.Condition()
        self.closed = False

    def __bool__(self) -> bool:
        return bool(self._messages)

    def post(self, message: Message) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def wake(self) -> None:
        """Make the thread that waits look again."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Nothing more is to be taken."""
        with self._changed:
            self.closed = True
            self._changed.notify()

    def wait(self, has_work: Callable[[], bool], patience_s: Callable[[], float | None]) -> bool:
        """Sleep until a message, work, the end or patience comes to its end. False when it is closed."""
        with self._changed:
            while not (self.closed or self._messages or has_work()):
                if not self._changed.wait(patience_s()):
                    break
            return not self.closed

    def take(self) -> Iterator[Message]:
        """All there is, one by one."""
        while self._messages:
            yield self._messages.popleft()

    def take_jobs(self) -> Iterator[tuple[Job, ...]]:
        """The jobs that come before anything else, one submission after the other."""
        while self._messages:
            message = self._messages[0]
            if not isinstance(message, tuple):
                return
            self._messages.popleft()
            yield message
