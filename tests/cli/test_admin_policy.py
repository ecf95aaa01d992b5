"""`inferctl admin policy` and processes that start, over a real NATS: sealing, passphrases, tampering, exports."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness.http import Answer
from harness.nats import NatsServers

from inferflux.broker.broker import Broker
from inferflux.broker.subjects import BUCKET_POLICY, KEY_FAIRNESS
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.sealing import open_store

WORDS = "correct horse battery"


def test_status_fails_when_something_is_refused(inferctl: Any, http_server: Callable[..., Any]) -> None:
    refused = [{"bucket": "policy", "key": "limits", "reason": "it is not sealed"}]
    answers = {
        "GET": {"sealed": True, "generation": 3, "num_entries": 2, "refused": refused},
        "POST": {"repaired": ["policy/limits"], "left": ["policy/x"], "dry_run": False},
    }
    url = http_server(lambda asked: Answer(200, answers[asked.method])).url
    done = inferctl("admin", "policy", "status", "--url", url)
    assert (done.status, done.out) == (1, "sealed; generation 3, 2 entries\n")
    assert "policy/limits: it is not sealed" in done.err
    repaired = inferctl("admin", "policy", "repair", "--url", url)
    assert repaired.status == 1
    assert "put back: policy/limits" in repaired.err
    assert "import an export: policy/x" in repaired.err


class Fleet:
    """A NATS of one's own, and `inferctl` and processes that join it."""

    def __init__(self, inferctl: Any, nats: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
        self._inferctl = inferctl
        self._nats = nats
        self._monkeypatch = monkeypatch
        self._options = ("--set", f"broker.store_dir={nats.settings.broker.store_dir}")

    def policy(self, *words: str, passphrase: str = WORDS, **environ: str) -> Any:
        for name, value in (environ | {"INFERFLUX_POLICY_PASSPHRASE": passphrase}).items():
            self._monkeypatch.setenv(name, value)
        return self._inferctl("admin", "policy", *words, *self._options)

    def start(self, module: str, passphrase: str | None) -> subprocess.CompletedProcess[str]:
        """A process that is expected to refuse."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("INFERFLUX_")}
        if passphrase is not None:
            environ["INFERFLUX_POLICY_PASSPHRASE"] = passphrase
        command = [sys.executable, "-m", module, *self._options, "--set", "model.backend=stub"]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    def run(self, work: Callable[[Broker], Any]) -> Any:
        async def connected() -> Any:
            async with self._nats.broker("api") as broker:
                return await work(broker)

        return asyncio.run(connected())


@pytest.fixture
def fleet(inferctl: Any, own_nats: NatsServers, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(inferctl, own_nats, monkeypatch)


async def weigh(broker: Broker, passphrase: str | None, weight: float) -> None:
    await FairnessStore(await open_store(broker, passphrase, may_create=True)).change({"acme": weight}, {})


async def weights(broker: Broker, passphrase: str) -> dict[str, float]:
    return (await FairnessStore(await open_store(broker, passphrase, may_create=False)).read()).weights


@pytest.mark.integration
def test_seal_rekey_export_tamper_import(fleet: Fleet, tmp_path: Path) -> None:
    fleet.run(lambda broker: weigh(broker, None, 4.0))
    assert "would seal: policy/fairness" in fleet.policy("seal", "--dry-run").err
    assert "sealed: policy/fairness" in fleet.policy("seal").err
    assert fleet.run(lambda broker: weights(broker, WORDS)) == {"acme": 4.0}

    fresh = "an even better passphrase"
    assert fleet.policy("rekey", INFERFLUX_POLICY_NEW_PASSPHRASE=fresh).status == 0
    assert fleet.policy("rekey", INFERFLUX_POLICY_NEW_PASSPHRASE=fresh).status == 2
    file = tmp_path / "policy.export"
    assert fleet.policy("export", str(file), passphrase=fresh).status == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert fleet.policy("export", str(file), passphrase=fresh).status == 1

    async def tamper(broker: Broker) -> None:
        await (await broker.bucket(BUCKET_POLICY)).put(KEY_FAIRNESS, b"{}")

    fleet.run(tamper)
    assert fleet.policy("export", str(tmp_path / "second"), passphrase=fresh).status == 1
    assert "written: policy/fairness" in fleet.policy("import", str(file), passphrase=fresh).err
    assert fleet.run(lambda broker: weights(broker, fresh)) == {"acme": 4.0}


@pytest.mark.integration
@pytest.mark.parametrize(
    ("module", "passphrase", "says"),
    [
        ("inferflux.api", "a wrong passphrase", "INFERFLUX_POLICY_PASSPHRASE does not open the policy store"),
        ("inferflux.workers", None, "the policy store is sealed: set INFERFLUX_POLICY_PASSPHRASE"),
    ],
)
def test_a_process_without_the_passphrase_does_not_start(
    fleet: Fleet, module: str, passphrase: str | None, says: str
) -> None:
    fleet.run(lambda broker: weigh(broker, WORDS, 4.0))
    done = fleet.start(module, passphrase)
    assert done.returncode == 2
    assert says in done.stderr
    assert "a wrong passphrase" not in done.stderr
