"""The heartbeat: what a worker tells the fleet about itself, once a second, in an entry that expires."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import psutil

from inferflux.broker.broker import Broker, Bucket
from inferflux.broker.errors import BrokerError
from inferflux.broker.subjects import BUCKET_WORKERS, encode_token
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import WorkerBeat
from inferflux.config.logs import get_logger
from inferflux.config.version import package_version

from .meter import Meter
from .worker import Worker

log = get_logger("worker.heartbeat")

MISSED_BEATS = 5


class Heartbeat:
    """A worker that misses five beats is gone for the fleet."""

    def __init__(self, worker: Worker, broker: Broker, meter: Meter, interval_s: float) -> None:
        self._worker = worker
        self._meter = meter
        self._broker = broker
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._bucket: Bucket | None = None

    async def run(self) -> None:
        """Beat until cancelled; then take the entry back."""
        try:
            while True:
                try:
                    await self._put()
                except BrokerError as error:
                    log.warning("heartbeat not sent", reason=str(error))
                except Exception as error:
                    # A worker that serves must not seem dead.
                    log.error("heartbeat failed", error=error)
                await asyncio.sleep(self._interval_s)
        finally:
            if self._bucket is not None:
                try:
                    await self._bucket.delete(encode_token(self._worker.id))
                except BrokerError as error:
                    log.warning("heartbeat not withdrawn", reason=str(error))

    def beat(self) -> WorkerBeat:
        worker = self._worker
        self._meter.read(worker.mounts)
        ready = [host.capacity for host in worker.hosts if host.state == "ready"]
        return WorkerBeat(
            worker=worker.id,
            epoch=worker.epoch,
            host=socket.gethostname(),
            pid=os.getpid(),
            started=worker.started,
            at=time.time(),
            version=package_version(),
            draining=worker.draining,
            hardware=worker.hardware,
            rss_bytes=self._process.memory_info().rss,
            model_bytes=sum(capacity.model_bytes for capacity in ready),
            kv_bytes=sum(capacity.kv_bytes for capacity in ready),
            num_steps=sum(host.stats().num_steps for host in worker.hosts if host.state == "ready"),
            models=tuple(mount.beat() for mount in worker.mounts.values()),
        )

    async def _put(self) -> None:
        if self._bucket is None:
            self._bucket = await self._broker.bucket(BUCKET_WORKERS)
        ttl_s = max(1.0, MISSED_BEATS * self._interval_s)
        await self._bucket.put(encode_token(self._worker.id), encode(self.beat()), ttl_s=ttl_s)
