"""Ports for servers under test: below those that the system gives to outgoing connections, any of which could take a
port between its choice and the moment when a server, on a busy machine seconds later, listens there."""

from __future__ import annotations

import secrets
import socket

FIRST, LAST = 10_000, 32_000


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def free_port(in_a_row: int = 1) -> int:
    """The first of as many free ports in a row."""
    while True:
        first = FIRST + secrets.randbelow(LAST - FIRST)
        if all(_free(first + offset) for offset in range(in_a_row)):
            return first


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
