"""Make everything that a fleet with TLS shares, in one folder: certificates, NATS users, and each role's environment.

    python deploy/nats/prepare.py --node nats-1 --node nats-2 --node nats-3 --out secrets
    python deploy/nats/prepare.py --kubernetes NAMESPACE --out secrets

A node is a host name or `NAME=ADDRESS[,ADDRESS]` with every name and address that it is found by. Writes ca.pem,
NAME.pem and NAME.key for each node, users.conf, api.env and worker.env (what `inferctl api` and `inferctl worker` read
from their environment), admin.env for backups, and credentials.json with all of it. With --kubernetes the nodes are
those of charts/inferflux, and kubernetes.yaml holds the secrets that it names. Files with secrets are for their owner
alone. Nothing that is there already is overwritten.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import kubernetes
import make_users
import msgspec
from certificates import Authority

from inferflux.broker.credentials import ROLE_ADMIN, ROLE_API, ROLE_WORKER, StoredCredentials
from inferflux.config.errors import InferFluxError


def main() -> int:
    """Read the arguments and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--node", action="append", metavar="NAME[=ADDRESS,...]")
    where.add_argument("--kubernetes", metavar="NAMESPACE", help="for charts/inferflux in this namespace")
    parser.add_argument("--port", action="append", type=int, default=[], help="each node's client port; 4222")
    parser.add_argument("--publisher", action="append", default=[], metavar="TENANT:CLASS[,CLASS]")
    parser.add_argument("--ca-path", default="/run/secrets/ca.pem", help="where processes find ca.pem")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    given = arguments.node or [kubernetes.node(arguments.kubernetes)]
    nodes = {name: addresses.split(",") if addresses else [] for name, _, addresses in map(_halves, given)}
    publishers = make_users.publishers(parser, arguments.publisher)
    out: Path = arguments.out
    if (out / "credentials.json").exists():
        print(f"{out}/credentials.json is there already: nothing was changed", file=sys.stderr)
        return 0
    ports = arguments.port or [4222] * len(nodes)
    if len(ports) != len(nodes):
        parser.error("give one --port for each --node, or none")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        made = write(out, nodes, ports, publishers, ca_path=arguments.ca_path)
    except InferFluxError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    if arguments.kubernetes:
        _private(out / "kubernetes.yaml", kubernetes.secrets(out, made, arguments.kubernetes).encode())
    return 0


def write(
    out: Path,
    nodes: Mapping[str, Sequence[str]],
    ports: Sequence[int],
    publishers: Mapping[str, Sequence[str]],
    *,
    ca_path: str,
) -> StoredCredentials:
    """Everything into `out`; returns the credentials."""
    authority = Authority()
    authority.write(out / "ca.pem")
    for name, addresses in nodes.items():
        authority.issue(out / name, [name, *addresses])
    hosts = [addresses[0] if addresses else name for name, addresses in nodes.items()]
    url = ",".join(f"tls://{host}:{port}" for host, port in zip(hosts, ports, strict=True))
    made = make_users.make(out / "users.conf", publishers, url)
    for role in (ROLE_API, ROLE_WORKER, ROLE_ADMIN):
        _private(out / f"{role}.env", environment(made, role, ca_path, len(nodes)).encode())
    # Last: its presence says that the folder is complete.
    _private(out / "credentials.json", msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    return made


def environment(made: StoredCredentials, role: str, ca_path: str, num_nodes: int) -> str:
    """What one role's processes need to join, a line for each variable; secrets only for those who may have them."""
    login = made.logins[role]
    variables = {
        "INFERFLUX_BROKER_URL": made.url,
        "INFERFLUX_BROKER_USER": login.user,
        "INFERFLUX_BROKER_PASSWORD": login.password,
        "INFERFLUX_BROKER_TLS_CA": ca_path,
        "INFERFLUX_BROKER_REPLICAS": "3" if num_nodes >= 3 else "1",
    }
    if role != ROLE_ADMIN:
        variables["INFERFLUX_BROKER_STAMP_SECRET"] = made.stamp_secret
    if role == ROLE_WORKER:
        variables["INFERFLUX_BROKER_SEAL_SECRET"] = made.seal_secret
    return "".join(f"{name}={value}\n" for name, value in variables.items())


def _halves(node: str) -> tuple[str, str, str]:
    return node.partition("=")


def _private(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


if __name__ == "__main__":
    sys.exit(main())
