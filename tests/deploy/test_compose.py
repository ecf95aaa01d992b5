"""compose.yaml and what it hands to OPA, Prometheus and Grafana: valid, locked up, and accepted by the programs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness.checkout import ROOT, text
from harness.opa import OpaServer
from harness.ports import free_port

from inferflux.config import load

GIVEN = ROOT / "deploy" / "compose"


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text("compose.yaml"))
    return loaded


def test_compose_follows_the_specification() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    defaults = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", yaml.safe_dump(compose()))
    parsed = compose_spec.PyCompose.from_yaml(defaults)
    parsed.validate()
    assert {"nats-1", "nats-2", "nats-3", "api-1", "api-2", "worker", "proxy", "opa", "prometheus", "grafana"} <= set(
        parsed.service_names()
    )


def test_compose_names_files_that_are_there() -> None:
    loaded = compose()
    for config in loaded["configs"].values():
        assert (ROOT / config["file"]).is_file(), config
    for service in loaded["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./"):
                # Models are what the operator brings.
                assert source == "./models" or (ROOT / source).is_dir(), source
            else:
                assert source in loaded["volumes"]
        names = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", ())}
        assert names <= set(loaded["secrets"])
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in text("Dockerfile")


def test_compose_publishes_on_loopback_and_pins_images() -> None:
    for name, service in compose()["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if "build" not in service:
            assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert service.get("read_only", False) or name == "grafana", name


def test_only_workers_get_the_worker_s_secrets() -> None:
    files = {name: service.get("env_file", []) for name, service in compose()["services"].items()}
    assert {name for name, given in files.items() if "deploy/compose/secrets/worker.env" in given} == {
        "worker",
        "worker-cuda",
    }
    assert {name for name, given in files.items() if "deploy/compose/secrets/api.env" in given} == {"api-1", "api-2"}


def test_the_policy_is_found_where_processes_ask_and_lets_everything_pass() -> None:
    for name in ("api-1", "worker"):
        environ = compose()["services"][name]["environment"]
        guardrails = load.load(GIVEN / "server.yaml", environ).settings.guardrails
        assert guardrails.opa_endpoint.startswith("http://opa:8181/v1/data/")
        path = guardrails.opa_endpoint.removeprefix("http://opa:8181/v1/data/")
        opa = OpaServer((GIVEN / "policy.rego").read_text())
        assert opa.evaluate(path, {"tenant": "dev", "texts": ["hi"]}) == {"result": True}


def asked(url: str, condition: Callable[[httpx.Response], bool] = lambda _: True) -> httpx.Response:
    """The first answer that meets the condition, while the program starts."""
    deadline_s = time.monotonic() + 180
    while time.monotonic() < deadline_s:
        try:
            answer = httpx.get(url, timeout=60)
            if condition(answer):
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} did not answer as expected in 180 s")


def test_a_prometheus_takes_its_settings_and_every_alert(tmp_path: Path) -> None:
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("prometheus is not installed")
    service = compose()["services"]["prometheus"]
    assert "./deploy/prometheus:/etc/prometheus/rules:ro" in service["volumes"]
    rules = ROOT / "deploy" / "prometheus"
    settings = (GIVEN / "prometheus.yaml").read_text().replace("/etc/prometheus/rules", str(rules))
    (tmp_path / "prometheus.yml").write_text(settings)
    url = f"http://127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    command += [f"--web.listen-address={url.removeprefix('http://')}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        asked(url + "/-/ready", lambda answer: answer.status_code == 200)
        groups = asked(url + "/api/v1/rules").json()["data"]["groups"]
        loaded = yaml.safe_load(asked(url + "/api/v1/status/config").json()["data"]["yaml"])
        asked(url + "/api/v1/targets", lambda answer: "http://nats-exporter:7777/metrics" in answer.text)
    finally:
        process.terminate()
        process.wait(60)
    found = {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"}
    told = yaml.safe_load((rules / "inferflux.yaml").read_text())["groups"]
    assert found == {rule["alert"] for group in told for rule in group["rules"] if "alert" in rule}
    assert {job["job_name"] for job in loaded["scrape_configs"]} == {"inferflux-api", "inferflux-worker", "nats"}


def test_what_prometheus_scrapes_are_services_with_a_network_in_common() -> None:
    services = compose()["services"]
    jobs = yaml.safe_load((GIVEN / "prometheus.yaml").read_text())["scrape_configs"]
    names = {name for job in jobs for each in job.get("dns_sd_configs", ()) for name in each["names"]}
    names |= {
        target.partition(":")[0] for job in jobs for each in job.get("static_configs", ()) for target in each["targets"]
    }
    assert names == {"api-1", "api-2", "worker", "worker-cuda", "nats-exporter"}
    for name in names:
        assert set(services[name]["networks"]) & set(services["prometheus"]["networks"]), name


def test_grafana_finds_dashboards_and_their_source() -> None:
    service = compose()["services"]["grafana"]
    (source,) = yaml.safe_load((GIVEN / "grafana-datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((GIVEN / "grafana-dashboards.yaml").read_text())["providers"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana:{folder}:ro" in service["volumes"]
    home = Path(service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == folder
    assert (ROOT / "deploy" / "grafana" / home.name).is_file()
    for path in (ROOT / "deploy" / "grafana").glob("*.json"):
        uids = {panel["datasource"]["uid"] for panel in json.loads(path.read_text())["panels"]}
        assert uids == {source["uid"]}, path.name
