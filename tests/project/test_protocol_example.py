"""The publisher printed in docs/protocol.md runs as it stands, under a tenant's own credentials."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness.checkout import text
from harness.server import PUBLISHER, running_server

pytestmark = pytest.mark.integration


def test_the_documented_publisher_gets_its_answer(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", text("docs/protocol.md"), re.DOTALL)
    with running_server(tmp_path) as server:
        stored = json.loads((server.store_dir / "credentials.json").read_text())
        login = stored["logins"][f"t-{PUBLISHER}"]
        environ = os.environ | {
            "MODEL": "stub",
            "NATS_TENANT": PUBLISHER,
            "NATS_URL": stored["url"],
            "NATS_USER": login["user"],
            "NATS_PASSWORD": login["password"],
        }
        done = subprocess.run(
            [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=180, check=False
        )
    assert done.returncode == 0, done.stderr
    answer, _, usage = done.stdout.partition("\n[")
    assert answer.strip()
    assert "completion_tokens" in usage
