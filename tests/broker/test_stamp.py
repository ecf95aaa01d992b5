"""The stamp vouches for exactly what was stamped."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferflux.broker.stamp import Stamp, Stamper

SECRET = b"a secret of enough bytes"
STAMP = Stamp("a-replica", 2000, 7)
OWNERS = st.text("abcdefghijklmnopqrstuvwxyz-_0123456789", min_size=1, max_size=20)


def write(stamp: Stamp = STAMP) -> str:
    return Stamper(SECRET).write(stamp, subject="s", msg_id="m", body=b"b")


def check(header: str | None, secret: bytes = SECRET, **changes: object) -> Stamp | None:
    stamped = {"subject": "s", "msg_id": "m", "body": b"b"} | changes
    return Stamper(secret).check(header, **stamped)  # type: ignore[arg-type]


@given(st.builds(Stamp, OWNERS, st.integers(2000, 2**40), st.integers(0, 2**40)), st.binary(max_size=50))
def test_genuine_stamp_is_returned(stamp: Stamp, body: bytes) -> None:
    header = Stamper(SECRET).write(stamp, subject="s", msg_id="m", body=body)
    assert check(header, body=body) == stamp


@pytest.mark.parametrize(
    "changes",
    [{"subject": "t"}, {"msg_id": "n"}, {"body": b"c"}, {"secret": b"another secret of bytes"}],
)
def test_anything_else_is_not(changes: dict[str, object]) -> None:
    assert check(write()) == STAMP
    assert check(write(), **changes) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("field", range(5))
def test_no_field_can_be_changed(field: int) -> None:
    parts = write().split(";")
    parts[field] += "1"
    assert check(";".join(parts)) is None


@pytest.mark.parametrize(
    "header",
    [None, "", "1", ";;;;", "1;a;x;7;mac", "1;a;2000;7;", "2;" + "x;" * 3, "é" * 10, f"1;a;{'9' * 5000};7;m"],
)
def test_nonsense_is_no_stamp(header: str | None) -> None:
    assert check(header) is None


def test_stamps_of_one_request_do_not_fit_another() -> None:
    assert write() != write(msgspec.structs.replace(STAMP, owner="a-replicb"))
    assert write() != write(msgspec.structs.replace(STAMP, policy_revision=8))


def test_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Stamper(b"short")


def test_tag_binds_request_and_tenant() -> None:
    stamper = Stamper(SECRET)
    tags = {stamper.tag(request, tenant) for request in ("r1", "r2") for tenant in ("a", "b")}
    assert len(tags) == 4
    assert stamper.tag("r1", "a") in tags
