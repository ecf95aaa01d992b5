"""charts/inferflux as Helm renders it, into an API that takes everything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from .checkout import ROOT
from .kubeapi import KubeApi

helm = pytest.importorskip("helm_sdkpy", reason="helm-sdkpy is not installed")

CHART = ROOT / "charts" / "inferflux"


def copy(folder: Path, *, nats: bool) -> Path:
    """The chart in `folder`, with what `helm dependency build` has left in it, or without its dependency."""
    target = folder / "inferflux"
    shutil.copytree(CHART, target, ignore=None if nats else shutil.ignore_patterns("charts", "Chart.lock"))
    about = yaml.safe_load((target / "Chart.yaml").read_text())
    (dependency,) = about["dependencies"]
    assert (dependency["name"], dependency["condition"]) == ("nats", "nats.enabled")
    if not nats:
        del about["dependencies"]
        (target / "Chart.yaml").write_text(yaml.safe_dump(about))
    return target


async def install(chart: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object that an installation creates; raises HelmError for values that the chart refuses."""
    with KubeApi() as api:
        configuration = helm.Configuration(namespace="prod", kubeconfig=api.kubeconfig())
        await helm.Install(configuration).run("inferflux", str(chart), values=values, wait=False)
        return api.created


def named(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (each for each in objects if (each["kind"], each["metadata"]["name"]) == (kind, name))
    return found


def assert_valid(objects: list[dict[str, Any]]) -> None:
    """What the schemas of Kubernetes ask for; and, as its API does, no path that a container mounts twice."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for each in objects:
        if each["apiVersion"].partition("/")[0] not in {"keda.sh", "monitoring.coreos.com"}:
            validate.validate(each, "1.33", strict=True)
        pod = each.get("spec", {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", ()):
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", ())]
            assert len(paths) == len(set(paths)), (each["metadata"]["name"], container["name"], paths)
            names = {mount["name"] for mount in container.get("volumeMounts", ())}
            claims = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
            assert names <= {volume["name"] for volume in pod["volumes"]} | claims
