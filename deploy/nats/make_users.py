"""Make `users.conf` for a NATS cluster: one user for each role, with the permissions it needs and no
more, and an account for each tenant that publishes.

    python deploy/nats/make_users.py --publisher acme:default,batch > credentials.json

Writes users.conf into the current directory and prints the credentials, which no other place keeps: give each process
those of its role (`broker.user`, `broker.password`), and the two secrets to API replicas and workers.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from inferflux.broker import accounts, permissions
from inferflux.broker.credentials import Login, StoredCredentials


def main() -> None:
    """Read the arguments, write the file, print the credentials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publisher", action="append", default=[], metavar="TENANT:CLASS[,CLASS]")
    parser.add_argument("--url", default="nats://127.0.0.1:4222", help="where the cluster is, separated by commas")
    arguments = parser.parse_args()
    made = make(Path("users.conf"), publishers(parser, arguments.publisher), arguments.url)
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")


def publishers(parser: argparse.ArgumentParser, given: Sequence[str]) -> dict[str, Sequence[str]]:
    """Each tenant's classes, from what --publisher was given; what names none ends the program."""
    found: dict[str, Sequence[str]] = {}
    for each in given:
        tenant, colon, classes = each.rpartition(":")
        if not colon:
            parser.error(f"--publisher {each}: name the classes, as in {each}:default,batch")
        found[tenant] = classes.split(",")
    return found


def make(users_conf: Path, classes: Mapping[str, Sequence[str]], url: str) -> StoredCredentials:
    """Write new users, a publisher for each tenant in `classes`, to a file that only its owner reads, and return their
    credentials with new secrets."""
    allowed = permissions.roles(classes)
    logins = {role: Login(role, secrets.token_urlsafe(32)) for role in allowed}
    with open(os.open(users_conf, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(accounts.accounts_file(logins, allowed))
    return StoredCredentials(url, logins, secrets.token_urlsafe(32), secrets.token_urlsafe(32))


if __name__ == "__main__":
    main()
