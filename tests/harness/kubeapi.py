"""A Kubernetes API that takes everything: Helm installs into it, and what was created can be looked at."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import yaml

# Kinds that may be created, by API version: (kind, plural).
KINDS: dict[str, list[tuple[str, str]]] = {
    "v1": [
        ("ConfigMap", "configmaps"),
        ("Namespace", "namespaces"),
        ("PersistentVolumeClaim", "persistentvolumeclaims"),
        ("Pod", "pods"),
        ("Secret", "secrets"),
        ("Service", "services"),
        ("ServiceAccount", "serviceaccounts"),
    ],
    "apps/v1": [("Deployment", "deployments"), ("StatefulSet", "statefulsets")],
    "autoscaling/v2": [("HorizontalPodAutoscaler", "horizontalpodautoscalers")],
    "keda.sh/v1alpha1": [("ScaledObject", "scaledobjects")],
    "monitoring.coreos.com/v1": [
        ("PodMonitor", "podmonitors"),
        ("PrometheusRule", "prometheusrules"),
        ("ServiceMonitor", "servicemonitors"),
    ],
    "networking.k8s.io/v1": [("Ingress", "ingresses"), ("NetworkPolicy", "networkpolicies")],
    "policy/v1": [("PodDisruptionBudget", "poddisruptionbudgets")],
}


class KubeApi:
    """Serves on loopback while the block runs; `created` holds every object but Helm's own release records."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        created = self.created

        class Handler(_Handler):
            objects = created

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self) -> str:
        """For clients, as YAML."""
        url = f"http://127.0.0.1:{self._server.server_port}"
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: list[dict[str, Any]]

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        match parts:
            case ["version"]:
                self._answer({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})
            case ["api"]:
                self._answer({"kind": "APIVersions", "versions": ["v1"]})
            case ["apis"]:
                self._answer({"kind": "APIGroupList", "apiVersion": "v1", "groups": _groups()})
            case ["api", "v1"]:
                self._answer(_resources("v1"))
            case ["apis", group, version] if f"{group}/{version}" in KINDS:
                self._answer(_resources(f"{group}/{version}"))
            case [*_, "secrets"]:
                self._answer({"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []})
            case _:
                self._answer({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound"}, 404)

    def do_POST(self) -> None:
        self._take(201)

    def do_PUT(self) -> None:
        self._take(200)

    def _take(self, status: int) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        kind = self.headers["Content-Type"]
        # Helm keeps its own records in protobuf; what a chart makes comes as JSON.
        if kind.startswith("application/json") and self.command == "POST":
            self.objects.append(json.loads(content))
        self._send(content, kind, status)

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(json.dumps(content).encode(), "application/json", status)

    def _send(self, data: bytes, kind: str, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _groups() -> list[dict[str, Any]]:
    found = []
    for each in KINDS:
        group, slash, version = each.partition("/")
        if slash:
            name = {"groupVersion": each, "version": version}
            found.append({"name": group, "versions": [name], "preferredVersion": name})
    return found


def _resources(group_version: str) -> dict[str, Any]:
    verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": [
            {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs}
            for kind, plural in KINDS[group_version]
        ],
    }
