"""The base of every message, and how it is written."""

from __future__ import annotations

import msgspec


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of every message."""


_encoder = msgspec.json.Encoder()


def encode(message: Wire) -> bytes:
    """JSON bytes of any message."""
    return _encoder.encode(message)
