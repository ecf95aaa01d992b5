"""charts/inferflux, rendered by Helm itself into an API that takes everything, for several values files."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.chart import CHART, assert_valid, copy, helm, install, named
from harness.checkout import ROOT

from inferflux.broker.subjects import Lane, ServiceClass, consumer
from inferflux.config import load

VALUES = {
    "defaults": None,
    "production": ROOT / "deploy" / "values.yaml",
    **{path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))},
}
Rendered = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart without its dependency, which comes from the network."""
    return copy(tmp_path_factory.mktemp("chart"), nats=False)


@pytest.fixture(scope="module")
def rendered(chart: Path) -> Rendered:
    """What each values file becomes."""
    return {name: asyncio.run(install(chart, values_of(name))) for name in VALUES}


def values_of(name: str) -> dict[str, Any]:
    path = VALUES[name]
    return yaml.safe_load(path.read_text()) if path else {}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_rendered_follows_the_schemas_of_kubernetes(rendered: Rendered, name: str) -> None:
    objects = rendered[name]
    kinds = {each["kind"] for each in objects}
    assert {"Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "NetworkPolicy", "ServiceAccount"} <= kinds
    assert_valid(objects)


@pytest.mark.parametrize("name", VALUES)
def test_processes_accept_the_settings_that_are_rendered(rendered: Rendered, name: str, tmp_path: Path) -> None:
    objects = rendered[name]
    data = named(objects, "ConfigMap", "inferflux")["data"]
    (tmp_path / "server.yaml").write_text(data["server.yaml"])
    (tmp_path / "registry.yaml").write_text(data["registry.yaml"])
    for deployment in (each for each in objects if each["kind"] == "Deployment"):
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        environ = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        known = {name: value for name, value in environ.items() if name != "INFERFLUX_POLICY_PASSPHRASE"}
        settings = load.load(tmp_path / "server.yaml", known).settings
        assert settings.broker.url == environ["INFERFLUX_BROKER_URL"]


@pytest.mark.parametrize("name", VALUES)
def test_every_pod_is_locked_up_and_drains(rendered: Rendered, name: str) -> None:
    for deployment in (each for each in rendered[name] if each["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        drain = next(each["value"] for each in container["env"] if each["name"].endswith("_DRAIN_TIMEOUT_S"))
        assert pod["terminationGracePeriodSeconds"] > int(drain)
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
        secrets = {each["secretRef"]["name"] for each in container["envFrom"]}
        role = deployment["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
        assert secrets == {"inferflux-api" if role == "api" else "inferflux-worker"}


def test_pools_are_apart_and_gpus_are_asked_for(rendered: Rendered) -> None:
    objects = rendered["production"]
    gpu = named(objects, "Deployment", "inferflux-worker-gpu")["spec"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    cpu = named(objects, "Deployment", "inferflux-worker-cpu")
    assert "nvidia.com/gpu" not in str(cpu)
    # KEDA owns the number of replicas.
    assert "replicas" not in cpu["spec"]
    scaler = named(objects, "ScaledObject", "inferflux-worker-cpu")
    assert scaler["spec"]["scaleTargetRef"]["name"] == "inferflux-worker-cpu"
    assert 'model="smollm2"' in scaler["spec"]["triggers"][0]["metadata"]["query"]


def test_the_jetstream_scaler_names_the_lane_s_consumer(rendered: Rendered) -> None:
    scaler = named(rendered["jetstream"], "ScaledObject", "inferflux-worker-cpu")
    (trigger,) = scaler["spec"]["triggers"]
    assert trigger["metadata"]["consumer"] == consumer(Lane("smollm2", ServiceClass.DEFAULT, "dev"))
    assert (trigger["metadata"]["account"], trigger["metadata"]["stream"]) == ("fleet", "PROMPTS")


def test_the_hpa_scales_on_each_model(rendered: Rendered) -> None:
    scaler = named(rendered["hpa"], "HorizontalPodAutoscaler", "inferflux-worker-cpu")
    models = [each["external"]["metric"]["selector"]["matchLabels"]["model"] for each in scaler["spec"]["metrics"]]
    assert models == ["smollm2", "org/model:v1.5"]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a typo": ({"api": {"replica": 3}}, "replica"),
    "no replicas": ({"api": {"replicas": 0}}, "minimum"),
    "keys in a ConfigMap": ({"settings": {"auth": {"api_keys": [{"key": "x"}]}}}, "api_keys"),
    "a password in a ConfigMap": ({"settings": {"broker": {"password": "x"}}}, "password"),
    "no broker": ({"nats": {"enabled": False}}, "broker.url"),
    "keda without models": ({"workers": {"cpu": {"autoscaling": {"kind": "keda"}}}}, "models"),
    "jetstream with short-lived lanes": (
        {
            "workers": {
                "cpu": {
                    "autoscaling": {
                        "kind": "keda-jetstream",
                        "lanes": [{"model": "m", "class": "default", "tenant": "t"}],
                    }
                }
            }
        },
        "lane_idle_s",
    ),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_values_are_refused(chart: Path, case: str) -> None:
    values, named_in_error = WRONG[case]
    with pytest.raises(helm.HelmError, match=named_in_error):
        await install(chart, values)


def test_prepared_secrets_are_those_that_the_chart_names(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "nats" / "prepare.py"
    command = [sys.executable, script, "--kubernetes", "prod", "--out", tmp_path / "s"]
    subprocess.run(command, check=True, timeout=60)
    manifests = yaml.safe_load_all((tmp_path / "s" / "kubernetes.yaml").read_text())
    objects = {each["metadata"]["name"]: each for each in manifests}
    assert_valid(list(objects.values()))
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    broker, nats = defaults["broker"], defaults["nats"]
    (users,) = (each["value"]["secret"]["secretName"] for each in nats["podTemplate"]["patch"])
    assert set(objects) == {broker["apiSecret"], broker["workerSecret"], broker["caSecret"], users}
    assert nats["config"]["cluster"]["tls"]["secretName"] == broker["caSecret"]
    assert set(objects[broker["caSecret"]]["stringData"]) == {"ca.crt", "tls.crt", "tls.key"}
