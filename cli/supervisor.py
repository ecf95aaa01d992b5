"""Child processes that are kept running: started, restarted with a growing delay, drained in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from inferflux.config.errors import InferFluxError
from inferflux.config.lifeline import SUPERVISED
from inferflux.config.logs import get_logger

from .death import EXIT_CONFIG, explain, num_oom_kills
from .merge import LineMerger

_LAST_WORDS_S = 1.0
# Our children end like this when somebody else told them to, a rolling restart by hand for one; never by failing.
_STOPPED = frozenset({0, -signal.SIGTERM, -signal.SIGINT})

log = get_logger("serve")


class ChildSpec(msgspec.Struct, frozen=True):
    """One child: its name in the log, its command, and what its environment has beyond ours.

    Children of a lower `rank` are stopped first, and a rank only when the one before it is gone. A child that
    has not drained after `grace_s` is killed.
    """

    name: str
    argv: tuple[str, ...]
    rank: int = 0
    grace_s: float = 30.0
    environ: Mapping[str, str] = {}


class RestartPolicy(msgspec.Struct, frozen=True):
    """The n-th early death in a row waits `first_delay_s * 2**(n-1)`; one that lived `settled_s` counts anew, and one
    that was stopped from elsewhere is no death."""

    first_delay_s: float = 0.5
    max_delay_s: float = 15.0
    settled_s: float = 20.0
    max_early_deaths: int = 5

    def delay_s(self, num_early_deaths: int) -> float:
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** (num_early_deaths - 1))


class ChildGaveUp(InferFluxError):
    """A child kept dying, or said that its settings are wrong: starting it again would not help."""


class Supervisor:
    """Runs children until told to stop. Their output goes line by line to `merger`.

    A child's stdin is a pipe that we hold and never write to: when we die, however, it reads an end of file.
    """

    def __init__(self, specs: Sequence[ChildSpec], merger: LineMerger, policy: RestartPolicy | None = None) -> None:
        self._specs = tuple(specs)
        self._merger = merger
        self._policy = policy or RestartPolicy()
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = False

    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, by name."""
        return {name: child.pid for name, child in self._running.items()}

    def hang_up(self) -> None:
        """Pass SIGHUP on: children open their logs anew."""
        self._signal(tuple(self._running), signal.SIGHUP)

    async def run(self, stop: asyncio.Event, kill: asyncio.Event | None = None) -> None:
        """Keep the children running until `stop`, then drain them rank by rank; `kill` cuts the draining short.

        Raises ChildGaveUp, after draining, when a child cannot be kept running.
        """
        keepers = {spec.name: asyncio.create_task(self._keep(spec)) for spec in self._specs}
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait({stopped, *keepers.values()}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            stopped.cancel()
            await self._drain(keepers, kill or asyncio.Event())
        for task in done - {stopped}:
            task.result()

    async def _keep(self, spec: ChildSpec) -> None:
        num_early_deaths = 0
        while not self._stopping:
            started_s, oom_kills = time.monotonic(), num_oom_kills()
            returncode = await self._run_once(spec)
            if self._stopping:
                return
            lived_s = time.monotonic() - started_s
            reason = explain(returncode, oom_kills_before=oom_kills, oom_kills_after=num_oom_kills())
            if returncode in _STOPPED:
                num_early_deaths, delay_s = 0, self._policy.first_delay_s
                log.warning("process was stopped", process=spec.name, lived_s=lived_s, restart_in_s=delay_s)
                await asyncio.sleep(delay_s)
                continue
            num_early_deaths = 1 if lived_s >= self._policy.settled_s else num_early_deaths + 1
            if returncode == EXIT_CONFIG:
                raise ChildGaveUp(f"{spec.name} cannot start with these settings; it says why above")
            if num_early_deaths >= self._policy.max_early_deaths:
                raise ChildGaveUp(f"{spec.name} died {num_early_deaths} times in a row, last by {reason}")
            delay_s = self._policy.delay_s(num_early_deaths)
            log.error("process died", process=spec.name, reason=reason, lived_s=lived_s, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _run_once(self, spec: ChildSpec) -> int:
        child = await asyncio.create_subprocess_exec(
            *spec.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **spec.environ, SUPERVISED: spec.name},
            # A Ctrl-C in the terminal is for us alone: we pass it on in order.
            start_new_session=True,
        )
        self._running[spec.name] = child
        log.info("process started", process=spec.name, pid=child.pid)
        assert child.stdout is not None
        reading = asyncio.create_task(self._merger.drink(spec.name, child.stdout))
        try:
            return await child.wait()
        finally:
            del self._running[spec.name]
            if child.returncode is None:
                child.kill()
                await child.wait()
            # Not without a limit: a process that the child started may hold its output open.
            await asyncio.wait({reading}, timeout=_LAST_WORDS_S)
            reading.cancel()

    async def _drain(self, keepers: Mapping[str, asyncio.Task[None]], kill: asyncio.Event) -> None:
        killed = asyncio.create_task(kill.wait())
        for rank in sorted({spec.rank for spec in self._specs}):
            names = [spec.name for spec in self._specs if spec.rank == rank]
            grace_s = max(spec.grace_s for spec in self._specs if spec.rank == rank)
            tasks = {keepers[name] for name in names}
            self._signal(names, signal.SIGTERM)
            for name in names:
                if name not in self._running:
                    # It waits for its next start, which must not come.
                    keepers[name].cancel()
            await _until(tasks, killed, grace_s)
            for name in set(names) & self._running.keys():
                log.warning("process did not drain in time, killing it", process=name)
            self._signal(names, signal.SIGKILL)
            await asyncio.gather(*tasks, return_exceptions=True)
        killed.cancel()

    def _signal(self, names: Sequence[str], number: signal.Signals) -> None:
        for name in names:
            if name in self._running:
                with contextlib.suppress(ProcessLookupError):
                    self._running[name].send_signal(number)


async def _until(tasks: set[asyncio.Task[None]], killed: asyncio.Task[bool], grace_s: float) -> None:
    deadline_s = time.monotonic() + grace_s
    while any(not task.done() for task in tasks) and not killed.done():
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            return
        await asyncio.wait({*tasks, killed}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)


def install_signal_handlers(on_signal: Callable[[], None]) -> None:
    """Call `on_signal` in the loop for SIGINT and SIGTERM, each time."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
