"""The secrets that charts/inferflux names, as manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from inferflux.broker.credentials import ROLE_API, ROLE_WORKER, StoredCredentials

NATS = "inferflux-nats"


def node(namespace: str) -> str:
    """The NATS of the chart as prepare.py's --node: one certificate for all pods and the service."""
    domains = ("", f".{namespace}", f".{namespace}.svc", f".{namespace}.svc.cluster.local")
    names = [f"{host}{domain}" for domain in domains for host in (NATS, f"*.{NATS}-headless")]
    return f"{NATS}={','.join(names)}"


def secrets(out: Path, made: StoredCredentials, namespace: str) -> str:
    """The manifests, from a folder that prepare.py wrote."""
    tls = {"ca.crt": "ca.pem", "tls.crt": f"{NATS}.pem", "tls.key": f"{NATS}.key"}
    return yaml.safe_dump_all(
        [
            _secret(f"{NATS}-tls", namespace, {key: (out / file).read_text() for key, file in tls.items()}),
            _secret(f"{NATS}-users", namespace, {"users.conf": (out / "users.conf").read_text()}),
            *(_secret(f"inferflux-{role}", namespace, _environ(made, role)) for role in (ROLE_API, ROLE_WORKER)),
        ],
        sort_keys=False,
    )


def _environ(made: StoredCredentials, role: str) -> dict[str, str]:
    """Addresses and certificates are the chart's; what is secret is here."""
    login = made.logins[role]
    variables = {
        "INFERFLUX_BROKER_USER": login.user,
        "INFERFLUX_BROKER_PASSWORD": login.password,
        "INFERFLUX_BROKER_STAMP_SECRET": made.stamp_secret,
    }
    return variables | ({"INFERFLUX_BROKER_SEAL_SECRET": made.seal_secret} if role == ROLE_WORKER else {})


def _secret(name: str, namespace: str, data: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "stringData": data,
    }
