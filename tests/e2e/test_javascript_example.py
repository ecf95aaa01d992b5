"""The JavaScript example, with the official NATS client from npm and nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from harness.checkout import ROOT
from harness.server import PUBLISHER, Server

pytestmark = pytest.mark.integration

EXAMPLE = ROOT / "examples" / "javascript"
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def example(pytestconfig: pytest.Config) -> Path:
    """The example with its dependency, in a folder of its own that is kept between runs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir("javascript"))
    for name in ("package.json", "publish.js"):
        shutil.copy(EXAMPLE / name, folder / name)
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefer-offline"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("npm cannot install the NATS client: its registry does not answer")
    if installed.returncode:
        pytest.skip(f"npm cannot install the NATS client: {installed.stderr.strip()[-300:]}")
    return folder


def run(example: Path, server: Server, prompt: str, **environ: str) -> subprocess.CompletedProcess[str]:
    stored = json.loads((server.store_dir / "credentials.json").read_text())
    login = stored["logins"][f"t-{PUBLISHER}"]
    given = {
        "NATS_URL": stored["url"],
        "NATS_USER": login["user"],
        "NATS_PASSWORD": login["password"],
        "NATS_TENANT": PUBLISHER,
        "MODEL": "stub",
        "MAX_TOKENS": str(NUM_TOKENS),
    }
    return subprocess.run(
        ["node", "publish.js", prompt],
        cwd=example,
        env=os.environ | given | environ,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_prints_the_answer(example: Path, stub_server: Server) -> None:
    done = run(example, stub_server, "Tell me about the sea")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3
    assert f"{NUM_TOKENS} out]" in done.stderr


def test_it_says_what_went_wrong(example: Path, stub_server: Server) -> None:
    refused = run(example, stub_server, "x", MAX_TOKENS="-1")
    assert refused.returncode == 1
    assert "invalid_request" in refused.stderr
