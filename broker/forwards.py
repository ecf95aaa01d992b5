"""Forwards: prompts on their way from the worker that pulled them to one that suits them better.

The lease goes along: a consumer takes acknowledgements from whoever knows where to send them.
"""

from __future__ import annotations

from collections.abc import Callable

from . import subjects
from .broker import Forwarded, Offer
from .delivery import JetStreamDelivery
from .errors import MessageTooLarge
from .jetstream_api import JetStreamApi
from .link import Link
from .packet import Packet
from .wire.base import encode
from .wire.fleet import Forward, decode_forward

FORWARD_S = 0.1
"""How long an answer may take: the prompt waits for it, and computing its beginning again does not take for ever."""

TAKEN, REFUSED = b"taken", b"refused"


class Forwards:
    """Offers prompts to other workers, and answers theirs."""

    def __init__(self, link: Link, js: JetStreamApi) -> None:
        self._link = link
        self._js = js

    async def send(self, delivery: JetStreamDelivery, to: str, offer: Offer) -> bool:
        packet = delivery.packet
        message = Forward(
            worker=offer.worker,
            load=offer.load,
            num_paid=offer.num_paid,
            subject=packet.subject,
            ack=packet.reply,
            headers=packet.raw_headers,
            body=packet.data,
        )
        subject = subjects.forward(delivery.lane.model, to)
        try:
            answer = await self._link.request(subject, encode(message), timeout_s=FORWARD_S)
        except MessageTooLarge:
            return False
        return answer.data == TAKEN

    def handler(self, on_forward: Callable[[Forwarded], None]) -> Callable[[Packet], None]:
        """What is to be done with each message that comes for a worker."""

        def on_packet(packet: Packet) -> None:
            message = decode_forward(packet.data)
            pulled = Packet(message.subject, message.ack, message.body, message.headers)
            delivery = JetStreamDelivery(self._link, self._js, subjects.parse_lane(message.subject), pulled)
            offer = Offer(message.worker, message.load, message.num_paid)

            def answer(taken: bool) -> None:
                self._link.send(packet.reply, TAKEN if taken else REFUSED)

            on_forward(Forwarded(delivery, offer, answer))

        return on_packet
