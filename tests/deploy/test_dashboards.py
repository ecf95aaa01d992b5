"""Every panel of every dashboard finds something in a real Prometheus that scrapes a real fleet."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness.checkout import ROOT
from harness.ports import free_ports
from harness.server import KEY, PUBLISHER, Server, running_server

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.config import load

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
QUERIES = sorted(
    {
        (name, panel["title"], target["expr"])
        for name, dashboard in DASHBOARDS.items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
)
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_the_files_are_what_the_code_says(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "dashboards.py", tmp_path)
    subprocess.run([sys.executable, tmp_path / "dashboards.py"], check=True, timeout=60)
    assert {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")} == DASHBOARDS
    assert set(DASHBOARDS) == {"fleet", "model", "tenant", "broker"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has watched a fleet at work for some seconds; its URL."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    folder = tmp_path_factory.mktemp("prometheus")
    settings: dict[str, Any] = {
        "runtime": {"scheduler": {"max_batch_size": 2}, "stub": {"step_s": 0.02}},
        "queue": {"no_backend_grace_s": 1.0},
        "logging": {"audit_log": str(folder / "audit.log")},
    }
    with running_server(folder / "fleet", settings=settings) as server:
        (port,) = free_ports(1)
        told = re.compile(r"http://(127\.0\.0\.1:\d+)/metrics")
        server.wait_until("the worker tells its port", lambda: told.search(server.log_text()))
        (worker,) = set(told.findall(server.log_text()))
        targets = {"inferflux-api": server.url.removeprefix("http://"), "inferflux-worker": worker}
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [binary, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            server.wait_until("prometheus", lambda: httpx.get(f"{url}/-/ready", timeout=60).status_code == 200)
            asyncio.run(publish(server))
            # Series begin with the first round, and grow in the second.
            for _ in range(2):
                work(server)
                scraped(server, url)
            refuse(server)
            scraped(server, url)
            yield url
        finally:
            process.terminate()
            process.wait(30)


async def publish(server: Server) -> None:
    """A prompt that nobody pulls."""
    broker = await JetStreamBroker.connect(load.load(server.folder / "server.yaml", {}).settings, "api", "test")
    body = json.dumps({"type": "completion", "id": "nobody", "prompt": "hi"}).encode()
    await broker.publish_prompt(Lane("no-such-model", ServiceClass.DEFAULT, PUBLISHER), body, msg_id="nobody")
    await broker.close()


def work(server: Server) -> None:
    """Prompts that wait, and an error, for a few seconds."""

    def ask(number: int) -> None:
        body = {"model": "stub", "prompt": "hi " * 40, "max_tokens": 50, "ignore_eos": True}
        if number == 3:
            body["prompt"] = "word " * 20_000
        headers = {"authorization": f"Bearer {KEY}"}
        httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=120)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def refuse(server: Server) -> None:
    """A key that nobody knows, and a limit that is used up."""
    assert server.get("/v1/models", key="no-such-key").status_code == 401
    limits = {"key": {"requests_per_minute": 1}}
    headers = {"authorization": f"Bearer {KEY}"}
    assert httpx.put(f"{server.url}/v1/admin/rate_limit", json=limits, headers=headers, timeout=60).status_code == 200
    body = {"model": "stub", "prompt": "hi", "max_tokens": 1}
    url = f"{server.url}/v1/completions"
    server.wait_until("a limit", lambda: httpx.post(url, json=body, headers=headers, timeout=60).status_code == 429)


def scraped(server: Server, url: str) -> None:
    """Return when every target has answered some more scrapes."""

    def num_scrapes() -> int:
        found = query(url, "min(sum_over_time(up[10m]))")
        return int(float(found[0]["value"][1])) if found else 0

    wanted = num_scrapes() + 3
    server.wait_until("scrapes of all that", lambda: num_scrapes() >= wanted)


def query(url: str, expression: str, at_s: float | None = None) -> list[dict[str, Any]]:
    given = {"query": expression} | ({"time": str(at_s)} if at_s else {})
    answer = httpx.get(f"{url}/api/v1/query", params=given, timeout=60).json()
    assert answer["status"] == "success", answer
    return list(answer["data"]["result"])


@pytest.mark.parametrize(("dashboard", "title", "expression"), QUERIES, ids=lambda text: str(text)[:40])
def test_a_panel_finds_what_it_asks_for(prometheus: str, dashboard: str, title: str, expression: str) -> None:
    # What a lost lease counts is seen where leases get lost: the tests of alerts do that.
    others = {'outcome="lost"': 'outcome=~".+"'}
    for name, value in {"$__rate_interval": "1m", "$model": ".+", "$tenant": ".+", **others}.items():
        expression = expression.replace(name, value)
    found = query(prometheus, f"last_over_time(({expression})[5m:500ms])", time.time())
    assert found
    assert any(each["value"][1] != "NaN" for each in found)
