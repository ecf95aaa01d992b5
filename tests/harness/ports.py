"""Ports for servers under test: below those that the system gives to outgoing connections, any of which could take a
port between its choice and the moment when a server, on a busy machine seconds later, listens there. For the same
reason none is given twice, and processes that share the tests have each a part of them."""

from __future__ import annotations

import os
import secrets
import socket

FIRST, LAST = 10_000, 28_000
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on, all different."""
    return [free_port() for _ in range(count)]


def free_port(in_a_row: int = 1) -> int:
    """The first of as many free ports in a row."""
    own = _own()
    while True:
        first = own.start + secrets.randbelow(len(own) - in_a_row)
        ports = range(first, first + in_a_row)
        if _given.isdisjoint(ports) and all(map(_free, ports)):
            _given.update(ports)
            return first


def _own() -> range:
    """The part of this process among those that pytest-xdist has started."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (LAST - FIRST) // max(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")), number + 1)
    return range(FIRST + number * size, FIRST + (number + 1) * size)


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
