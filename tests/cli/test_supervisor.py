"""The supervisor over small Python scripts as children."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from inferflux.cli.death import explain
from inferflux.cli.merge import LineMerger
from inferflux.cli.supervisor import ChildGaveUp, ChildSpec, RestartPolicy, Supervisor

FAST = RestartPolicy(first_delay_s=0.01, max_delay_s=0.02, settled_s=60.0, max_early_deaths=3)

# Says hello, then waits for SIGTERM, SIGHUP or its parent's end, and says which came. The wakeup pipe is for a signal
# that comes just before the wait begins: Python's handlers would not run, and the wait would not end.
PATIENT = """
import os, select, signal, sys
woken, wakeup = os.pipe()
os.set_blocking(wakeup, False)
signal.set_wakeup_fd(wakeup)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
os.write(1, b"hello\\n")
while True:
    ready, _, _ = select.select([0, woken], [], [])
    if woken in ready:
        for number in os.read(woken, 100):
            os.write(1, b"drained\\n" if number == signal.SIGTERM else b"reopened\\n")
            if number == signal.SIGTERM:
                sys.exit(0)
    elif 0 in ready:
        os.write(1, b"orphaned\\n")
        break
"""

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("hello", flush=True)
while True:
    time.sleep(60)
"""


class Output(io.StringIO):
    """A log that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._waiters: list[tuple[Callable[[str], bool], asyncio.Event]] = []

    def flush(self) -> None:
        for holds, event in self._waiters:
            if holds(self.getvalue()):
                event.set()

    async def wait_for(self, holds: Callable[[str], bool]) -> None:
        event = asyncio.Event()
        self._waiters.append((holds, event))
        self.flush()
        async with asyncio.timeout(60):
            await event.wait()


def script(name: str, code: str, *, rank: int = 0, grace_s: float = 60.0, **environ: str) -> ChildSpec:
    return ChildSpec(name=name, argv=(sys.executable, "-c", code), rank=rank, grace_s=grace_s, environ=environ)


@pytest.fixture
def output() -> Output:
    return Output()


def supervise(output: Output, *specs: ChildSpec, policy: RestartPolicy = FAST) -> Supervisor:
    return Supervisor(specs, LineMerger(output, "text", coloured=False), policy)


async def test_children_are_drained_rank_by_rank(output):
    stop = asyncio.Event()
    supervisor = supervise(
        output, script("worker", PATIENT, rank=1), script("api-1", PATIENT), script("api-2", PATIENT)
    )
    running = asyncio.create_task(supervisor.run(stop))
    await output.wait_for(lambda text: text.count("hello") == 3)
    assert supervisor.pids().keys() == {"worker", "api-1", "api-2"}
    stop.set()
    await running
    drained = [line.split()[1] for line in output.getvalue().splitlines() if line.endswith("drained")]
    assert sorted(drained[:2]) == ["api-1", "api-2"]
    assert drained[2:] == ["worker"]
    assert supervisor.pids() == {}


async def test_a_child_that_does_not_drain_is_killed(output):
    stop = asyncio.Event()
    running = asyncio.create_task(supervise(output, script("api", STUBBORN, grace_s=0.05)).run(stop))
    await output.wait_for(lambda text: "hello" in text)
    stop.set()
    async with asyncio.timeout(30):
        await running


async def test_a_second_signal_cuts_the_draining_short(output):
    stop, kill = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(supervise(output, script("api", STUBBORN, grace_s=3600)).run(stop, kill))
    await output.wait_for(lambda text: "hello" in text)
    stop.set()
    kill.set()
    async with asyncio.timeout(30):
        await running


async def test_a_hangup_is_passed_on(output):
    stop = asyncio.Event()
    supervisor = supervise(output, script("a", PATIENT), script("b", PATIENT))
    running = asyncio.create_task(supervisor.run(stop))
    await output.wait_for(lambda text: text.count("hello") == 2)
    supervisor.hang_up()
    await output.wait_for(lambda text: text.count("reopened") == 2)
    stop.set()
    await running


async def test_a_dead_child_is_started_again(output, tmp_path):
    once = f"import os, pathlib\nflag = pathlib.Path({str(tmp_path / 'flag')!r})\n" + (
        "if not flag.exists():\n    flag.touch()\n    os.kill(os.getpid(), 11)\n"
    )
    stop = asyncio.Event()
    running = asyncio.create_task(supervise(output, script("worker", once + PATIENT)).run(stop))
    await output.wait_for(lambda text: "hello" in text)
    stop.set()
    await running
    assert (tmp_path / "flag").exists()


@pytest.mark.parametrize("name", ["SIGILL", "SIGSEGV", "SIGABRT", "SIGKILL", "SIGBUS"])
async def test_a_child_that_keeps_dying_is_given_up_and_its_death_named(output, name):
    code = f"import os, signal\nos.kill(os.getpid(), signal.{name})"
    with pytest.raises(ChildGaveUp, match=f"worker died 3 times in a row, last by {name}"):
        await supervise(output, script("worker", code)).run(asyncio.Event())


async def test_one_that_is_given_up_takes_the_others_down_in_order(output):
    with pytest.raises(ChildGaveUp, match="exit status 7"):
        await supervise(output, script("worker", "raise SystemExit(7)", rank=1), script("api", PATIENT)).run(
            asyncio.Event()
        )


async def test_wrong_settings_are_not_tried_again(output):
    with pytest.raises(ChildGaveUp, match="settings"):
        await supervise(output, script("api", "print('once'); raise SystemExit(2)")).run(asyncio.Event())
    assert output.getvalue().count("once") == 1


async def test_a_child_that_lived_long_enough_starts_counting_anew(output):
    policy = RestartPolicy(first_delay_s=0.0, settled_s=0.0, max_early_deaths=2)
    stop = asyncio.Event()
    running = asyncio.create_task(
        supervise(output, script("api", "print('again'); raise SystemExit(1)"), policy=policy).run(stop)
    )
    await output.wait_for(lambda text: text.count("again") >= 4)
    stop.set()
    await running


async def test_a_child_that_somebody_else_stops_again_and_again_is_started_again(output):
    stop = asyncio.Event()
    supervisor = supervise(output, script("worker", PATIENT))
    running = asyncio.create_task(supervisor.run(stop))
    num_rounds = FAST.max_early_deaths + 2
    for number in range(1, num_rounds + 1):
        await output.wait_for(lambda text, number=number: text.count("hello") == number)
        os.kill(supervisor.pids()["worker"], signal.SIGTERM)
    await output.wait_for(lambda text: text.count("hello") == num_rounds + 1)
    stop.set()
    await running


async def test_stopping_while_a_child_waits_for_its_restart(output):
    policy = RestartPolicy(first_delay_s=3600.0, max_delay_s=3600.0)
    stop = asyncio.Event()
    supervisor = supervise(output, script("api", "print('bye')"), policy=policy)
    running = asyncio.create_task(supervisor.run(stop))
    await output.wait_for(lambda text: "bye" in text)
    stop.set()
    async with asyncio.timeout(30):
        await running


async def test_a_child_knows_its_name_and_its_own_variables(output):
    code = "import os; print(os.environ['INFERFLUX_SUPERVISED'], os.environ['MINE']); raise SystemExit(2)"
    with pytest.raises(ChildGaveUp):
        await supervise(output, script("worker-2", code, MINE="yes")).run(asyncio.Event())
    assert "worker-2 yes" in output.getvalue()


def test_children_notice_when_their_supervisor_is_killed(tmp_path: Path):
    farewell = tmp_path / "farewell"
    os.mkfifo(farewell)
    child = f"import sys; print('hello', flush=True); sys.stdin.read(); open({str(farewell)!r}, 'w').write('orphaned')"
    parent = f"""
import asyncio, sys
from inferflux.cli.merge import LineMerger
from inferflux.cli.supervisor import ChildSpec, Supervisor
spec = ChildSpec(name="api", argv=(sys.executable, "-c", {child!r}))
asyncio.run(Supervisor([spec], LineMerger(sys.stdout, "text", coloured=False)).run(asyncio.Event()))
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith(b"hello\n")
        process.kill()
    assert farewell.read_text() == "orphaned"


@pytest.mark.parametrize(
    ("returncode", "says"),
    [
        (0, "it ended by itself"),
        (3, "exit status 3"),
        (-signal.SIGILL, "build it again"),
        (-signal.SIGSEGV, "native code"),
        (-signal.SIGKILL, "out of memory"),
        (-signal.SIGUSR1, "SIGUSR1"),
        (-120, "signal 120"),
    ],
)
def test_deaths_have_names(returncode, says):
    assert says in explain(returncode)


def test_the_kernel_is_named_only_when_it_killed_meanwhile():
    assert "the kernel killed it" in explain(-9, oom_kills_before=3, oom_kills_after=4)
    assert "the kernel killed it" not in explain(-9, oom_kills_before=3, oom_kills_after=3)
    assert "the kernel killed it" not in explain(-9, oom_kills_before=None, oom_kills_after=None)


def test_delays_grow_up_to_a_limit():
    policy = RestartPolicy(first_delay_s=1.0, max_delay_s=5.0)
    assert [policy.delay_s(number) for number in (1, 2, 3, 4, 5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
