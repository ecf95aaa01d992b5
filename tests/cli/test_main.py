from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "llama_cpp", "numpy", "litestar", "nats", "uvicorn", "httpx")


@pytest.mark.parametrize("arguments", [[], ["serve"], ["pull"], ["doctor"], ["top"], ["queue", "dead"], ["admin"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys, json, io, contextlib\n"
        "from inferflux.cli.main import main\n"
        f"sys.argv = ['inferctl', *{arguments!r}, '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main()\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


def test_every_command_is_described(inferctl):
    shown = inferctl("--help").out
    assert " admin " in shown
    for command in (
        "serve",
        "api",
        "worker",
        "completion",
        "chat",
        "models",
        "status",
        "fleet",
        "top",
        "queue",
        "doctor",
        "pull",
        "config",
    ):
        assert f" {command} " in shown
        assert "--json" in inferctl(command, "--help").out or command in ("serve", "api", "worker")
