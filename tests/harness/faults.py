"""Fault points: a worker's view of the broker that can be held up, frozen, or made to die at one call."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any


class Gate:
    """Holds up every call of one name: `reached` when the first one came, and they go on once it is `opened`."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()


class Faults:
    """What is wrong with one worker. Seen from outside, a dead one is a process that was killed: nothing that it
    began goes on, and nothing that it holds is given back."""

    def __init__(self) -> None:
        self.dead = asyncio.Event()
        self._gates: dict[str, Gate] = {}
        self._last_calls: set[str] = set()
        self.dropped: set[str] = set()
        self._thawed = asyncio.Event()
        self._thawed.set()

    def gate(self, call: str) -> Gate:
        return self._gates.setdefault(call, Gate())

    def die(self) -> None:
        self.dead.set()

    def die_before(self, call: str) -> None:
        self._last_calls.add(call)

    def drop(self, call: str) -> None:
        """Such messages are lost on their way."""
        self.dropped.add(call)

    def freeze(self) -> None:
        """As SIGSTOP does, but for the engine: no call goes out until `thaw`."""
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def enter(self, call: str) -> None:
        """Return when the call may go on; never, when the worker is dead."""
        if call in self._last_calls:
            self.die()
        gate = self._gates.get(call)
        if gate is not None:
            gate.reached.set()
            await gate.opened.wait()
        await self._thawed.wait()
        await self.live()

    async def live(self) -> None:
        if self.dead.is_set():
            await asyncio.Event().wait()

    @property
    def mute(self) -> bool:
        return self.dead.is_set() or not self._thawed.is_set()


class Faulty:
    """A broker, or a delivery that it gave, whose calls pass the fault points."""

    def __init__(self, target: Any, faults: Faults) -> None:
        self._target = target
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._target, name)
        if not inspect.iscoroutinefunction(member):
            return member

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._faults.enter(name)
            if name in self._faults.dropped:
                return None
            result = await member(*args, **kwargs)
            await self._faults.live()
            return Faulty(result, self._faults) if name == "pull" and result is not None else result

        return call

    def send_frame(self, *args: Any) -> asyncio.Future[int]:
        if self._faults.mute:
            return asyncio.get_running_loop().create_future()
        future: asyncio.Future[int] = self._target.send_frame(*args)
        return future
