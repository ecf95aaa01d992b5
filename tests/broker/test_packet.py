"""Headers and statuses as the server sends them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.delivery import AckSubject
from inferflux.broker.packet import Packet, encode_headers

NAMES = st.text("ABCxyz-0", min_size=1, max_size=12)
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip)


def packet(raw_headers: bytes) -> Packet:
    return Packet("s", "", b"", raw_headers)


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_headers_come_back(headers: dict[str, str]) -> None:
    arrived = packet(encode_headers(headers))
    assert arrived.headers == headers
    assert arrived.status is None
    for name, value in headers.items():
        assert arrived.header(name) == value
    assert arrived.header("Not-There") is None


@pytest.mark.parametrize(
    "headers", [{"": "x"}, {"a b": "x"}, {"a:b": "x"}, {"a\r\nb": "x"}, {"a": "x\r\nNats-Rollup: all"}, {"a": "x\n"}]
)
def test_headers_cannot_break_the_protocol(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        encode_headers(headers)


@pytest.mark.parametrize(
    ("raw", "status", "description"),
    [
        (b"NATS/1.0 404 No Messages\r\n\r\n", 404, "No Messages"),
        (b"NATS/1.0 503\r\n\r\n", 503, ""),
        (b"NATS/1.0 409 Consumer Deleted\r\nNats-Pending-Messages: 1\r\n\r\n", 409, "Consumer Deleted"),
        (b"NATS/1.0\r\nA: 404\r\n\r\n", None, ""),
        (b"", None, ""),
    ],
)
def test_status(raw: bytes, status: int | None, description: str) -> None:
    assert packet(raw).status == status
    assert packet(raw).description == description


@pytest.mark.parametrize(
    "subject",
    ["$JS.ACK.PROMPTS.c.3.41.7.1790000000000000000.5", "$JS.ACK._.hash.PROMPTS.c.3.41.7.1790000000000000000.5.random"],
)
def test_ack_subject_with_and_without_a_domain(subject: str) -> None:
    assert AckSubject.parse(subject) == AckSubject(
        num_delivered=3, stream_seq=41, consumer_seq=7, stored_s=1790000000.0, num_pending=5
    )


@pytest.mark.parametrize("subject", ["", "$JS.ACK.PROMPTS.c.1", "$JS.API.INFO", "$JS.ACK.P.c.a.b.c.d.e"])
def test_what_acknowledges_nothing(subject: str) -> None:
    with pytest.raises(ValueError):
        AckSubject.parse(subject)
