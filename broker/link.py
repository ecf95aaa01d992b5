"""One connection to NATS, kept: requests, listeners, and coming back when it was lost or closed."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import Callable
from typing import Any

import nats.errors
from nats.protocol.command import hpub_cmd, pub_cmd

from inferflux.config.logs import get_logger

from .credentials import Connection
from .errors import BrokerError, BrokerUnavailable, ConfigError, MessageTooLarge
from .nats_client import Handler, NatsClient, next_server
from .packet import Packet

PING_INTERVAL_S = 5
MAX_BUFFERED = 64 * 1024 * 1024

_AUTH = re.compile(r"authorization violation|authentication|user credentials|nkey|jwt", re.IGNORECASE)
_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)

log = get_logger("broker")


class NoAnswer(BrokerUnavailable):
    """The connection is up, and nobody answered in time."""


class LinkSubscription:
    """One handler on one subject; follows its link through reconnects."""

    def __init__(self, link: Link, subject: str, handler: Handler) -> None:
        self._link = link
        self.subject = subject
        self.handler = handler
        self.sid = 0

    async def close(self) -> None:
        self._link.forget(self)


class Link:
    """A connection that is kept: it reconnects for ever, and reopens where nats-py would close for good."""

    def __init__(self, connection: Connection, *, name: str, timeout_s: float) -> None:
        self._connection = connection
        self._name = name
        self._timeout_s = timeout_s
        self._client: NatsClient | None = None
        self._subscriptions: set[LinkSubscription] = set()
        self._waiting: dict[str, tuple[asyncio.Future[Packet], str]] = {}
        self._num_requests = 0
        self._inbox = f"{connection.inbox_prefix}.{secrets.token_hex(8)}"
        self._up = asyncio.Event()
        self._closing = False
        self._reopening: asyncio.Task[None] | None = None
        self._last_error: Exception | None = None
        self._refused = asyncio.Event()
        self.on_lost: list[Callable[[], None]] = []
        self.on_restored: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected and self._up.is_set()

    @property
    def max_payload(self) -> int:
        """Bytes of headers and body that the server takes in one message."""
        assert self._client is not None, "not opened yet"
        return self._client.max_payload

    def inbox(self, purpose: str) -> str:
        """A subject prefix that only this connection listens to."""
        return f"{self._inbox}.{purpose}"

    async def open(self, deadline_s: float) -> None:
        """Connect. Raises ConfigError when the credentials are refused, BrokerUnavailable when time is up."""
        connecting = asyncio.create_task(self._connect())
        refused = asyncio.create_task(self._refused.wait())
        try:
            await asyncio.wait((connecting, refused), timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
                self._up.set()
            elif refused.done():
                raise ConfigError(
                    f"NATS at {self._connection.address} refuses the credentials of {self._name}: "
                    "check broker.user and broker.password, or broker.credentials"
                )
            else:
                raise BrokerUnavailable(f"cannot reach NATS at {self._connection.address}: {self._reason()}")
        finally:
            for task in (connecting, refused):
                task.cancel()
            await asyncio.gather(connecting, refused, return_exceptions=True)
        await self.listen(f"{self.inbox('r')}.*", self._on_answer)

    def send(self, subject: str, data: bytes, reply: str = "", headers: bytes | None = None) -> None:
        """Hand a message to the socket. Raises BrokerUnavailable when it cannot go out now."""
        client = self._client
        if client is None or not self.connected:
            raise BrokerUnavailable(f"not connected to NATS: {self._reason()}")
        size = len(data) + len(headers or b"")
        if size > client.max_payload:
            raise MessageTooLarge(f"a message of {size} bytes is over the server's max_payload {client.max_payload}")
        if client.pending_data_size > MAX_BUFFERED:
            raise BrokerUnavailable("NATS takes messages too slowly")
        client.send(hpub_cmd(subject, reply, headers, data) if headers else pub_cmd(subject, reply, data))

    async def request(
        self, subject: str, data: bytes = b"", *, headers: bytes | None = None, timeout_s: float | None = None
    ) -> Packet:
        """The one answer to a message; the server's "no responders" is an answer with status 503.

        Raises NoAnswer, or BrokerUnavailable when the connection is lost.
        """
        self._num_requests += 1
        token = str(self._num_requests)
        answer: asyncio.Future[Packet] = asyncio.get_running_loop().create_future()
        self._waiting[token] = (answer, subject)
        try:
            self.send(subject, data, f"{self._inbox}.r.{token}", headers)
            async with asyncio.timeout(self._timeout_s if timeout_s is None else timeout_s):
                return await answer
        except TimeoutError:
            raise NoAnswer(f"no answer from NATS on {subject}") from None
        finally:
            self._waiting.pop(token, None)

    async def listen(self, subject: str, handler: Handler) -> LinkSubscription:
        subscription = LinkSubscription(self, subject, handler)
        self._subscriptions.add(subscription)
        if self._client is not None and not self._client.is_closed:
            subscription.sid = await self._client.listen(subject, handler)
        return subscription

    def forget(self, subscription: LinkSubscription) -> None:
        self._subscriptions.discard(subscription)
        if self._client is not None:
            self._client.forget(subscription.sid)

    async def wait_connected(self, timeout_s: float) -> None:
        """Raises BrokerUnavailable when the connection does not come back in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise BrokerUnavailable(f"not connected to NATS: {self._reason()}") from None

    async def flush(self) -> None:
        """Wait until the server has read everything sent so far."""
        if self._client is not None and self.connected:
            try:
                await self._client.flush(timeout=max(1, int(self._timeout_s)))
            except Exception as error:
                raise BrokerUnavailable(f"NATS did not take what was sent: {error}") from error

    async def close(self) -> None:
        self._closing = True
        if self._reopening is not None:
            self._reopening.cancel()
            await asyncio.gather(self._reopening, return_exceptions=True)
        if self._client is not None and not self._client.is_closed:
            await self._client.close()
        self._lost()

    async def _connect(self) -> NatsClient:
        client = NatsClient(self._lost)

        async def on_closed() -> None:
            self._on_closed(client)

        options: dict[str, Any] = self._connection.options()
        try:
            await client.connect(
                list(self._connection.urls),
                name=self._name,
                inbox_prefix=self._connection.inbox_prefix,
                max_reconnect_attempts=-1,
                ping_interval=PING_INTERVAL_S,
                reconnect_time_wait=0.2,  # type: ignore[arg-type]
                reconnect_to_server_handler=next_server,
                error_cb=self._on_error,
                reconnected_cb=self._on_reconnected,
                closed_cb=on_closed,
                **options,
            )
        except BaseException:
            await client.close()
            raise
        self._client = client
        return client

    async def _reopen(self) -> None:
        delay_s = 0.5
        while not self._closing:
            await asyncio.sleep(delay_s * random.uniform(0.5, 1.5))  # noqa: S311
            delay_s = min(delay_s * 2, 5.0)
            try:
                async with asyncio.timeout(self._timeout_s):
                    client = await self._connect()
                await self._listen_again(client)
            except (TimeoutError, OSError, BrokerError, nats.errors.Error):
                log.warning("cannot reopen the connection to NATS", reason=self._reason())
                continue
            # One that is closed again by now found this task at work and started no other.
            if not client.is_closed:
                await self._on_reconnected()
                return

    async def _listen_again(self, client: NatsClient) -> None:
        again = tuple(self._subscriptions)
        for subscription in again:
            subscription.sid = 0  # an id of the last client may be another subscription's on this one
        for subscription in again:
            if subscription in self._subscriptions:
                subscription.sid = await client.listen(subscription.subject, subscription.handler)

    def _lost(self) -> None:
        self._up.clear()
        for answer, _ in self._waiting.values():
            if not answer.done():
                answer.set_exception(BrokerUnavailable("the connection to NATS was lost"))
        for callback in self.on_lost:
            callback()
        if not self._closing:
            log.warning("lost the connection to NATS", name=self._name)

    def _on_answer(self, packet: Packet) -> None:
        waiting = self._waiting.get(packet.subject.rpartition(".")[2])
        if waiting is not None and not waiting[0].done():
            waiting[0].set_result(packet)

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        violation = _VIOLATION.search(str(error))
        if violation is not None:
            log.error("NATS permissions refuse this", name=self._name, action=violation[1], subject=violation[2])
            for answer, subject in self._waiting.values():
                # nats-py reports the subject in lower case.
                if subject.lower() == violation[2].lower() and not answer.done():
                    answer.set_exception(BrokerError(f"NATS permissions of {self._name} refuse {subject}"))
        elif _AUTH.search(str(error)):
            self._refused.set()

    async def _on_reconnected(self) -> None:
        self._up.set()
        log.info("connected to NATS again", name=self._name)
        for callback in self.on_restored:
            callback()

    def _on_closed(self, client: NatsClient) -> None:
        # A client that never came up was closed by whoever tried to open it, and who tries again.
        if self._closing or client is not self._client:
            return
        self._lost()
        log.error("NATS closed the connection for good; reopening", name=self._name, reason=self._reason())
        if self._reopening is None or self._reopening.done():
            self._reopening = asyncio.create_task(self._reopen())

    def _reason(self) -> str:
        return str(self._last_error) or type(self._last_error).__name__ if self._last_error else "no answer"
