"""Short ways to make fair-share policies and let them talk."""

from __future__ import annotations

from inferflux.broker.fairshare import FairShare
from inferflux.broker.subjects import Lane, ServiceClass
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import decode_gossip
from inferflux.config.settings import FairnessSettings

from .simulation import MODEL

DEFAULT, BATCH, PRIORITY = ServiceClass.DEFAULT, ServiceClass.BATCH, ServiceClass.PRIORITY


def lane(tenant: str, service_class: ServiceClass = DEFAULT) -> Lane:
    return Lane(MODEL, service_class, tenant)


def fair_share(worker: str = "w0", policy: type[FairShare] = FairShare) -> FairShare:
    return policy(MODEL, worker, "e1", FairnessSettings())


def say(sender: FairShare, *receivers: FairShare, now_s: float) -> None:
    body = encode(sender.gossip(now_s, 0, "cpu"))
    for receiver in receivers:
        receiver.merge(decode_gossip(body), now_s)
