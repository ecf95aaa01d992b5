"""The NATS accounts of a fleet: one that holds the streams and everything of InferFlux's own, and one for each tenant
that publishes to NATS itself.

Permissions alone do not hold a publisher: they say nothing about the reply subject of a message, and JetStream sends
its acknowledgement wherever that points. In an account of its own a tenant has no subjects but those it imports, and an
import answers to the tenant's account only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from . import subjects
from .credentials import Login
from .permissions import Permissions
from .subjects import OWNER_TENANT

FLEET = "fleet"


def accounts(logins: Mapping[str, Login], permissions: Mapping[str, Permissions]) -> dict[str, Any]:
    """The `accounts` of a nats-server configuration, from the roles of a fleet (`permissions.roles`)."""
    fleet: list[dict[str, Any]] = []
    exports: list[dict[str, Any]] = []
    tenants: dict[str, Any] = {}
    for role, allowed in permissions.items():
        user = _user(logins[role], allowed)
        if not role.startswith(OWNER_TENANT):
            fleet.append(user)
            continue
        account = subjects.encode_token(role)
        services = [{"service": subject} for subject in allowed.publish]
        # A tenant's role is the owner of its requests, so this is where its frames come.
        shared = [*services, {"stream": subjects.reply_filter(role)}]
        exports += [each | {"accounts": [account]} for each in shared]
        tenants[account] = {
            "users": [user],
            "imports": [{kind: {"account": FLEET, "subject": name}} for each in shared for kind, name in each.items()],
        }
    return {FLEET: {"jetstream": True, "users": fleet, "exports": exports}, **tenants}


def accounts_file(logins: Mapping[str, Login], permissions: Mapping[str, Permissions]) -> bytes:
    """The same as a file that a nats-server configuration can `include`."""
    return b"accounts: " + msgspec.json.format(msgspec.json.encode(accounts(logins, permissions)), indent=2) + b"\n"


def _user(login: Login, allowed: Permissions) -> dict[str, Any]:
    return {
        "user": login.user,
        "password": login.password,
        "permissions": {
            "publish": {"allow": list(allowed.publish)},
            "subscribe": {"allow": list(allowed.subscribe)},
        },
    }
