"""Every alert fires on what a real fleet exposes while its incident happens, and none on what it exposes before."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness.checkout import ROOT
from harness.exposition import fires, promtool, read
from harness.server import KEY, PUBLISHER, Server, running_server
from prometheus_client import CollectorRegistry, generate_latest

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Claim
from inferflux.config import load
from inferflux.config.audit import MAX_WAITING, SYSTEM, Audit
from inferflux.config.metrics import PolicyMetrics, WorkerMetrics
from inferflux.config.settings import LoggingSettings
from inferflux.workers.engine.offload import Offload

RULES = ROOT / "deploy" / "prometheus" / "inferflux.yaml"
ALERTS = [
    rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]
SLOTS, STEP_S, NUM_TOKENS = 2, 0.02, 60

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
Scrapes = dict[str, dict[str, float]]


class Incidents:
    """A fleet that things happen to; `scrapes` has what it exposed after each."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.scrapes: Scrapes = {}
        self.pool = ThreadPoolExecutor(64)
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=server.url, timeout=300, limits=limits)

    def scrape(self, name: str) -> None:
        """Both kinds of processes, as a collector would."""
        found = read(self.server.get("/metrics").text, job="inferflux-api", instance="api:8080")
        for number, url in enumerate(self.workers()):
            try:
                answer = httpx.get(url, timeout=60)
            except httpx.HTTPError:
                continue
            found |= read(answer.text, job="inferflux-worker", instance=f"worker-{number}:9100")
        self.scrapes[name] = found

    def workers(self) -> list[str]:
        """Where each worker shows its metrics."""
        return sorted(set(re.findall(r"http://127\.0\.0\.1:\d+/metrics", self.server.log_text())))

    def ask(self, key: str = KEY, **fields: Any) -> int:
        """Send one request and wait for its end; the status."""
        body = {"model": "stub", "prompt": "hi", "max_tokens": NUM_TOKENS, "ignore_eos": True, **fields}
        headers = {"authorization": f"Bearer {key}"}
        return self.client.post("/v1/completions", json=body, headers=headers).status_code

    def crowd(self, number: int, **fields: Any) -> list[Any]:
        return [self.pool.submit(self.ask, **fields) for _ in range(number)]

    def settled(self, what: str, expression: str) -> None:
        """Wait until the API's metrics match."""
        pattern = re.compile(expression, re.MULTILINE)
        self.server.wait_until(what, lambda: pattern.search(self.server.get("/metrics").text))

    def shows(self, name: str, metric: str, value: float) -> bool:
        """Scrape; whether some series of the metric has this value. What is over soon is gone in a second scrape."""
        self.scrape(name)
        return any(series.startswith(metric) and found == value for series, found in self.scrapes[name].items())

    def happen(self) -> None:
        self.server.wait_until("both workers tell their ports", lambda: len(self.workers()) == 2)
        self.ask(max_tokens=2)
        self.scrape("healthy")
        self.published()
        self.overload()
        self.swept()
        self.stopped_worker()
        for _ in range(25):
            assert self.ask(prompt="a forbiddenword") == 400
        self.scrape("guardrails")
        self.full_tape()
        self.models()
        asyncio.run(self.dead_letter())
        for _ in range(25):
            assert self.ask(key="no-such-key") == 401
        self.scrape("auth")
        num_refused = 0
        # A minute may begin in the middle of a crowd, and with it another limit.
        while num_refused <= 60:
            num_refused += [each.result() for each in self.crowd(220, max_tokens=1)].count(429)
        self.scrape("limits")

    def published(self) -> None:
        """Answers that a tenant reads over NATS, beside one by HTTP: the API relays few of the tokens that are made."""
        self.ask()
        self.beside("alone")
        for number in range(6):
            asyncio.run(self.publish(f"published-{number}", max_tokens=NUM_TOKENS, ignore_eos=True))
        self.server.wait_until("nothing runs", lambda: not self.server.get("/v1/admin/queue").json()["data"])
        self.beside("behind")

    def beside(self, name: str) -> None:
        """Scrape while a stream is open, which then is broken off; where it ended first, beside another one."""
        body = {"model": "stub", "prompt": "hi", "max_tokens": 500, "ignore_eos": True, "stream": True}
        headers = {"authorization": f"Bearer {KEY}"}

        def seen() -> bool:
            with self.client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
                # A generator that nobody holds any more hangs up.
                lines = answer.iter_lines()
                assert next(lines)
                return self.shows(name, "inferflux_streams_open{", 1)

        self.server.wait_until("a stream", seen)
        self.server.wait_until("nothing runs", lambda: not self.server.get("/v1/admin/queue").json()["data"])

    def overload(self) -> None:
        """More than the slots, the pages and the tape can take: prompts wait, and some end with a 503."""
        waiting = self.crowd(48)
        self.server.wait_until("a long queue and a full cache", self.crowded)
        assert all(each.result() == 200 for each in waiting)
        self.scrape("latency")

    def crowded(self) -> bool:
        """Both in one scrape: the next one may find pages given back. The alert looks at what replicas have heard of
        each worker's cache, not at what the worker itself says."""
        self.scrape("queue")
        scrape = self.scrapes["queue"].items()
        depths = [value for name, value in scrape if name.startswith("inferflux_queue_depth{")]
        usages = [
            value for name, value in scrape if name.startswith("inferflux_kv_cache_usage_perc{") and ',worker="' in name
        ]
        return max(depths, default=0) > 16 and max(usages, default=0) > 0.96

    def full_tape(self) -> None:
        """Answers that the tape still keeps, until new requests are refused."""
        while self.ask() == 200:
            pass
        assert all(self.ask() == 503 for _ in range(8))
        self.scrape("tape")

    def swept(self) -> None:
        """A prompt for a model that nobody serves."""
        asyncio.run(self.publish("nobody", model="no-such-model"))
        depth = 'inferflux_queue_depth{instance="api:8080",job="inferflux-api",model="no-such-model"'
        self.server.wait_until("depth", lambda: self.shows("no worker", depth, 1))
        self.settled("swept", r'^inferflux_swept_total\{code="no_backend".*\} 1\.0')
        self.scrape("swept")

    def stopped_worker(self) -> None:
        """A worker stands still for longer than its leases: the other one takes over."""
        # Where the answer had ended before its worker stood still, another one is asked for.
        while not self.taken_over():
            pass
        self.server.wait_until("lost", self.lost)
        self.scrape("lost")

    def taken_over(self) -> bool:
        """Whether a second worker has claimed the request whose worker was stopped."""
        before = self.server.holders().items()
        answer = self.pool.submit(self.ask)
        held: set[tuple[str, int]] = set()
        self.server.wait_until("running", lambda: held.update(self.server.holders().items() - before) or held)
        ((request, pid),) = held
        os.kill(pid, signal.SIGSTOP)
        try:
            assert answer.result() == 200
        finally:
            os.kill(pid, signal.SIGCONT)
        return self.server.num_claims(request) > 1

    def lost(self) -> bool:
        self.scrape("_")
        return any('outcome="lost"' in name and value for name, value in self.scrapes["_"].items())

    def models(self) -> None:
        registry = self.server.folder / "registry.yaml"
        broken = self.server.folder / "broken.gguf"
        broken.write_bytes(b"GGUF and nothing more")
        registry.write_text(yaml.safe_dump({"models": [{"id": "broken", "path": str(broken), "backend": "llamacpp"}]}))
        self.server.wait_until("not loaded", lambda: self.failed())
        self.scrape("load")
        registry.write_text("models: [")
        self.settled("refused", r"^inferflux_registry_file_applied 0\.0")
        self.scrape("registry")

    def failed(self) -> bool:
        self.scrape("_")
        return any("registry_loads_total" in name and "failed" in name for name in self.scrapes["_"])

    async def publish(self, request: str, **fields: Any) -> int:
        settings = load.load(self.server.folder / "server.yaml", {}).settings
        broker = await JetStreamBroker.connect(settings, "api", "test")
        lane = Lane(fields.pop("model", "stub"), ServiceClass.DEFAULT, PUBLISHER)
        body = {"type": "completion", "id": request, "prompt": "hi", "max_tokens": 4, **fields}
        receipt = await broker.publish_prompt(lane, json.dumps(body).encode(), msg_id=request)
        await broker.close()
        return receipt.seq

    async def dead_letter(self) -> None:
        """A prompt on which three workers were lost."""
        settings = load.load(self.server.folder / "server.yaml", {}).settings
        worker = await JetStreamBroker.connect(settings, "worker", "test")
        seq = await self.publish("before")
        claim = Claim(worker="lost-1", prompt=seq + 1, num_attempts=3, at=time.time())
        await worker.put_claim(RequestKey(tenant_owner(PUBLISHER), "poison"), claim, expected_seq=0)
        await self.publish("poison")
        await worker.close()
        self.settled("dead letter", r"^inferflux_dead_letters 1\.0")
        self.scrape("dead")


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    promtool()
    folder = tmp_path_factory.mktemp("incidents")
    settings = {
        "runtime": {
            "scheduler": {"max_batch_size": SLOTS},
            "paged_kv": {"cpu_pages": 4, "page_size": 16},
            "stub": {"step_s": STEP_S},
        },
        "queue": {"lease_s": 1.0, "no_backend_grace_s": 3.0},
        "tape": {"max_bytes": 1_300_000, "high_water": 0.77, "window_s": 300},
        "guardrails": {"blocklist": ["forbiddenword"]},
        "registry": {"path": str(folder / "registry.yaml"), "poll_interval_s": 0.2},
        "auth": {
            "api_keys": [{"key": KEY, "tenant": "acme", "scopes": ["generate", "read", "admin"]}],
            "rate_limit_per_minute": 140,
        },
    }
    (folder / "registry.yaml").write_text("models: []\n")
    with running_server(folder, settings=settings, num_workers=2) as server:
        incidents = Incidents(server)
        with incidents.client, incidents.pool:
            incidents.happen()
        return incidents.scrapes


# The incident that causes each alert, by the scrape that was taken in it.
CAUSED = {
    "InferFluxQueueGrows": "queue",
    "InferFluxSlowFirstToken": "latency",
    "InferFluxNoWorker": "no worker",
    "InferFluxPromptsSwept": "swept",
    "InferFluxLeasesLost": "lost",
    "InferFluxDeadLetters": "dead",
    "InferFluxModelNotLoaded": "load",
    "InferFluxRegistryFileRefused": "registry",
    "InferFluxKVCacheFull": "queue",
    "InferFluxTapeFull": "tape",
    "InferFluxErrors": "tape",
    "InferFluxAuthErrors": "auth",
    "InferFluxLimitsReached": "limits",
    "InferFluxGuardrailHits": "guardrails",
}


@pytest.mark.parametrize("alert", CAUSED)
def test_an_alert_fires_on_its_incident(scrapes: Scrapes, tmp_path: Path, alert: str) -> None:
    fires(RULES, tmp_path, scrapes["healthy"], scrapes[CAUSED[alert]], {alert: True})


def test_nothing_fires_on_a_healthy_fleet(scrapes: Scrapes, tmp_path: Path) -> None:
    fires(RULES, tmp_path, scrapes["healthy"], scrapes["healthy"], dict.fromkeys(ALERTS, False))


def test_processes_that_are_gone(tmp_path: Path) -> None:
    up = 'up{instance="api:8080",job="inferflux-api"}'
    fires(RULES, tmp_path, {up: 1}, {up: 0}, {"InferFluxProcessDown": True})


def test_the_disk_for_prefixes_goes_away(tmp_path: Path) -> None:
    metrics = WorkerMetrics(registry := CollectorRegistry())
    offload = Offload(tmp_path / "nvme", 1 << 20, "model")
    offload.start()

    def scrape() -> dict[str, float]:
        metrics.offload_active.labels("m").set(offload.stats().active)
        return read(generate_latest(registry).decode(), job="inferflux-worker", instance="worker-0:9100")

    before = scrape()
    shutil.rmtree(tmp_path / "nvme")
    offload.store((b"page".ljust(16),), b"state")
    assert offload.flush(30)
    fires(RULES, tmp_path, before, before, {"InferFluxOffloadStopped": False})
    fires(RULES, tmp_path, before, scrape(), {"InferFluxOffloadStopped": True})
    offload.close(30)


def test_the_disk_of_the_audit_log_goes_away(tmp_path: Path) -> None:
    metrics = PolicyMetrics(registry := CollectorRegistry())
    disk = tmp_path / "disk"
    audit = Audit(LoggingSettings(audit_log=str(disk / "audit.log")))
    audit.on_lost = metrics.audit_lost.inc
    opened = threading.Event()
    audit.on_written = lambda _: opened.set()
    audit.record("request.denied", SYSTEM, "denied")
    assert opened.wait(30)

    def scrape() -> dict[str, float]:
        return read(generate_latest(registry).decode(), job="inferflux-api", instance="api:8080")

    before = scrape()
    disk.rename(tmp_path / "gone")
    disk.write_text("in the way")
    # Those that wait, and those that a writer holds meanwhile.
    for _ in range(3 * MAX_WAITING):
        audit.record("request.denied", SYSTEM, "denied")
    during = scrape()
    disk.unlink()
    audit.close()
    assert any(during.values())
    fires(RULES, tmp_path, before, before, {"InferFluxAuditLost": False})
    fires(RULES, tmp_path, before, during, {"InferFluxAuditLost": True})


def test_tokens_that_no_http_client_gets(scrapes: Scrapes, tmp_path: Path) -> None:
    fires(RULES, tmp_path, scrapes["healthy"], scrapes["alone"], {"InferFluxStreamsFallBehind": False})
    fires(RULES, tmp_path, scrapes["alone"], scrapes["behind"], {"InferFluxStreamsFallBehind": True})


def test_every_alert_has_a_test_and_a_place_in_the_playbook() -> None:
    elsewhere = set(re.findall(r"InferFlux\w+", Path(__file__).read_text()))
    assert set(ALERTS) <= elsewhere
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs" / "AdminGuide.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 _-]", "", each.lower()).replace(" ", "-") for each in headings}
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                document, _, anchor = rule["annotations"]["runbook"].partition("#")
                assert document == "docs/AdminGuide.md"
                assert anchor in anchors, rule["alert"]
