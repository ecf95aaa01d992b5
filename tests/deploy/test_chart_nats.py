"""charts/inferflux together with the official NATS chart: where `helm dependency build` has fetched that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.chart import CHART, assert_valid, copy, install, named
from harness.checkout import ROOT

from inferflux.broker.embedded import find_binary

PLACES = {
    "/etc/nats-ca-cert/ca.crt": "ca.crt",
    "/etc/nats-certs/cluster/tls.crt": "tls.crt",
    "/etc/nats-certs/cluster/tls.key": "tls.key",
    "/etc/nats-certs/nats/tls.crt": "tls.crt",
    "/etc/nats-certs/nats/tls.key": "tls.key",
}


@pytest.fixture(scope="module", params=["defaults", "production"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not list((CHART / "charts").glob("nats*")):
        pytest.skip("the NATS chart is not there: helm dependency build charts/inferflux")
    values = yaml.safe_load((ROOT / "deploy" / "values.yaml").read_text()) if request.param == "production" else {}
    return asyncio.run(install(copy(tmp_path_factory.mktemp("chart"), nats=True), values))


def test_it_follows_the_schemas(objects: list[dict[str, Any]]) -> None:
    assert_valid(objects)
    servers = named(objects, "StatefulSet", "inferflux-nats")
    assert servers["spec"]["replicas"] == 3


def test_processes_find_the_service(objects: list[dict[str, Any]]) -> None:
    ports = {each["port"] for each in named(objects, "Service", "inferflux-nats")["spec"]["ports"]}
    for deployment in (each for each in objects if each["kind"] == "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (url,) = (each["value"] for each in container["env"] if each["name"] == "INFERFLUX_BROKER_URL")
        assert url == "tls://inferflux-nats:4222"
    assert 4222 in ports


def test_the_policy_meets_the_servers(objects: list[dict[str, Any]]) -> None:
    labels = named(objects, "StatefulSet", "inferflux-nats")["spec"]["template"]["metadata"]["labels"]
    for policy in ("inferflux-nats", "inferflux-api", "inferflux-worker"):
        spec = named(objects, "NetworkPolicy", policy)["spec"]
        wanted = spec["podSelector"]["matchLabels"]
        if policy != "inferflux-nats":
            (to,) = (each for each in spec["egress"] if each["ports"][0]["port"] == 4222)
            wanted = to["to"][0]["podSelector"]["matchLabels"]
        assert wanted.items() <= labels.items()


def test_a_nats_server_accepts_the_configuration_with_the_prepared_secrets(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    script = ROOT / "deploy" / "nats" / "prepare.py"
    command = [sys.executable, script, "--kubernetes", "prod", "--publisher", "acme:default", "--out", tmp_path / "s"]
    subprocess.run(command, check=True, timeout=60)
    secrets = {
        each["metadata"]["name"]: each["stringData"]
        for each in yaml.safe_load_all((tmp_path / "s" / "kubernetes.yaml").read_text())
    }
    mounted = {
        volume["name"]: volume["secret"]["secretName"]
        for volume in named(objects, "StatefulSet", "inferflux-nats")["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert set(mounted.values()) == {"inferflux-nats-tls", "inferflux-nats-users"}
    configuration = named(objects, "ConfigMap", "inferflux-nats-config")["data"]["nats.conf"]
    for place, key in PLACES.items():
        file = tmp_path / place.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets["inferflux-nats-tls"][key])
        assert place in configuration
        configuration = configuration.replace(place, str(file))
    for folder in ("nats-users", "nats-config"):
        (tmp_path / "etc" / folder).mkdir()
    (tmp_path / "etc" / "nats-users" / "users.conf").write_text(secrets["inferflux-nats-users"]["users.conf"])
    (tmp_path / "etc" / "nats-config" / "nats.conf").write_text(configuration)
    command = [str(find_binary()), "-t", "-c", str(tmp_path / "etc" / "nats-config" / "nats.conf")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"SERVER_NAME": "nats-0"})
    assert done.returncode == 0, done.stderr
    assert '"sync_interval": "always"' in configuration
