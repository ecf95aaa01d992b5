"""OpenMP's threads get a core each where they fill the machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from harness.model import model_path

from inferflux.workers.backends.binding import PLACES, PROC_BIND, bound_threads
from inferflux.workers.backends.cores import num_cores

linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound here")


@linux
def test_binds_while_the_library_loads_only() -> None:
    environ: dict[str, str] = {}
    own = os.sched_getaffinity(0)
    with bound_threads(num_cores(), environ):
        assert environ == {PROC_BIND: "close", PLACES: "cores"}
        os.sched_setaffinity(0, {min(own)})
    assert not environ
    assert os.sched_getaffinity(0) == own


@linux
@pytest.mark.parametrize("decided", [{PROC_BIND: "false"}, {PLACES: "threads"}])
def test_leaves_what_the_operator_has_decided(decided: dict[str, str]) -> None:
    environ = dict(decided)
    with bound_threads(num_cores(), environ):
        assert environ == decided


def test_fewer_threads_than_cores_go_where_the_kernel_puts_them() -> None:
    environ: dict[str, str] = {}
    with bound_threads(num_cores() - 1, environ):
        assert not environ


COMPUTE = """
import os, sys, threading
from inferflux.config.settings import LlamaCppSettings, RuntimeSettings, SchedulerSettings
from inferflux.workers.backends.backend import Chunk
from inferflux.workers.backends.cores import num_cores
from inferflux.workers.backends.opening import open_backend

own = os.sched_getaffinity(0)
settings = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=1), llamacpp=LlamaCppSettings(threads=num_cores(), context_length=256)
)
backend = open_backend("llamacpp", sys.argv[1], settings)

def compute():
    backend.start()
    backend.run([Chunk(slot=0, start=0, tokens=[1, 2, 3], block_table=())])
    bound = [os.sched_getaffinity(int(each)) for each in os.listdir("/proc/self/task") if int(each) != os.getpid()]
    assert len(bound) >= num_cores(), bound
    assert set().union(*bound) == own and (num_cores() == 1 or all(each < own for each in bound)), bound

failed = []
threading.excepthook = failed.append
thread = threading.Thread(target=compute)
thread.start()
thread.join()
assert os.sched_getaffinity(0) == own
sys.exit(bool(failed))
"""


@linux
@pytest.mark.model
def test_the_engines_threads_share_no_core_and_the_event_loop_is_free() -> None:
    environ = {name: value for name, value in os.environ.items() if name not in (PROC_BIND, PLACES)}
    command = [sys.executable, "-c", COMPUTE, model_path()]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
