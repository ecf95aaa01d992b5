"""Patience: how long a request waits for a worker before this replica ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import ServiceClass
from inferflux.config.logs import get_logger
from inferflux.config.settings import QueueSettings
from inferflux.registry.fleet import Fleet

from .admission import no_backend, queue_timeout
from .cancel import Canceller, Order

if TYPE_CHECKING:
    from .exchange import Ticket

log = get_logger("api")

TIMEOUT_MARGIN_S = 2.0


class Patience:
    """Ends requests whose model has no worker, unless they are batch work, and those that no worker started in time.
    The terminal frame then comes like any other. Workers end late requests themselves; the margin leaves that to them
    while there are any."""

    def __init__(self, settings: QueueSettings, fleet: Fleet, canceller: Canceller) -> None:
        self._settings = settings
        self._fleet = fleet
        self._canceller = canceller

    async def check(self, ticket: Ticket, now_s: float) -> None:
        """For a request without any frame yet."""
        waited_s = now_s - ticket.accepted_s
        why = None
        if ticket.lane.service_class is not ServiceClass.BATCH:
            why = no_backend(
                ticket.model.id,
                waited_s=waited_s,
                absent_s=self._fleet.absent_for(ticket.model.id, now_s),
                grace_s=self._settings.no_backend_grace_s,
            )
        late = queue_timeout(waited_s=waited_s - TIMEOUT_MARGIN_S, timeout_s=self._settings.queue_timeout_s)
        end = why or late
        if end is None:
            return
        order = Order(ticket.key, ticket.prompt_seq, end)
        try:
            await self._canceller.cancel(order, unless_running=why is None)
        except BrokerError as error:
            log.warning("request not ended yet", request=ticket.key.request, reason=str(error))
