from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from inferflux.config.lifeline import SUPERVISED, parent_gone, supervised_name

WAIT = "import asyncio; from inferflux.config.lifeline import parent_gone; asyncio.run(parent_gone())"


def test_a_supervised_process_notices_the_end_of_its_parent():
    command = [sys.executable, "-c", "print('up', flush=True); " + WAIT]
    environ = {**os.environ, SUPERVISED: "api"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


async def test_a_process_of_its_own_has_no_parent_to_lose(monkeypatch):
    monkeypatch.delenv(SUPERVISED, raising=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(parent_gone(), 0.05)


def test_the_name_is_the_variables_value():
    assert supervised_name({SUPERVISED: "worker-2"}) == "worker-2"
    assert supervised_name({SUPERVISED: ""}) is None
    assert supervised_name({}) is None
