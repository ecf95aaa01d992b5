"""The poller: carries edits of the registry file into KV, and tells when it could not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from inferflux.broker.errors import BrokerError, ConfigError
from inferflux.broker.wire.policies import FileMark, ModelRegistry
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics
from inferflux.config.settings import Settings

from .amendments import apply_listing
from .listing import Listing, read_listing
from .model_store import ModelStore

log = get_logger("registry.file")

RETRY_S = 1.0


class FileReport(msgspec.Struct, frozen=True, kw_only=True):
    """How one replica's registry file stands: `applied` says whether what it says is in force. `error` is why its last
    edit changed nothing; `conflict` names the replica whose other file is in force."""

    path: str
    digest: str | None = None
    applied: bool = False
    error: str | None = None
    conflict: str | None = None


class RegistryPoller:
    """Every API replica has one, over a file of its own.

    A file is applied when it was edited, when no file is in force yet, and when the replica whose file is in force is
    gone. So of two replicas with different files neither takes back what the other did: both say so.
    """

    def __init__(
        self,
        settings: Settings,
        store: ModelStore,
        replica: str,
        is_there: Callable[[str], Awaitable[bool]],
        metrics: ApiMetrics,
    ) -> None:
        self.report = FileReport(path=str(Path(settings.registry.path).absolute()))
        self._settings = settings
        self._store = store
        self._replica = replica
        self._is_there = is_there
        self._metrics = metrics
        self._seen: str | None = None
        self._edited = False

    async def run(self) -> None:
        """Poll until cancelled; with an interval of 0 until it is known how the file stands."""
        interval_s = self._settings.registry.poll_interval_s
        while True:
            try:
                await self.poll()
            except BrokerError as error:
                log.warning("registry file not applied", path=self.report.path, reason=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            except Exception as error:
                log.error("registry file not polled", error=error, path=self.report.path)
            if not interval_s and self.report.conflict is None:
                return
            await asyncio.sleep(interval_s or RETRY_S)

    async def poll(self) -> FileReport:
        """Look at the file once. Raises BrokerError."""
        try:
            listing = await asyncio.to_thread(read_listing, self._settings)
        except ConfigError as error:
            self._tell(digest=self.report.digest, error=str(error))
            return self.report
        if listing.digest != self._seen:
            self._edited = self._seen is not None
            self._seen = listing.digest
        try:
            await self._reconcile(listing)
        except ConfigError as error:
            self._tell(digest=listing.digest, error=str(error))
        return self.report

    async def _reconcile(self, listing: Listing) -> None:
        standing = (await self._store.read()).file
        if standing is not None and standing.digest == listing.digest:
            self._edited = False
            self._tell(digest=listing.digest, applied=True)
            return
        others = standing is not None and standing.replica != self._replica and not self._edited
        if standing is not None and others and await self._is_there(standing.replica):
            self._tell(digest=listing.digest, conflict=f"{standing.replica} ({standing.path})")
            return
        mark = FileMark(path=self.report.path, digest=listing.digest, replica=self._replica, at=time.time())

        def applied(now: ModelRegistry) -> ModelRegistry:
            if now.file is not None and now.file.digest == listing.digest:
                return now
            return apply_listing(now, listing, mark)

        await self._store.amend(applied)
        self._edited = False
        self._metrics.registry_events.labels("file_applied").inc()
        log.info(
            "registry file applied", path=self.report.path, models=len(listing.records), digest=listing.digest[:12]
        )
        self._tell(digest=listing.digest, applied=True)

    def _tell(
        self, *, digest: str | None, applied: bool = False, error: str | None = None, conflict: str | None = None
    ) -> None:
        """Keep the report; what is new in it becomes an event."""
        before, path = self.report, self.report.path
        self.report = FileReport(path=path, digest=digest, applied=applied, error=error, conflict=conflict)
        self._metrics.registry_file_applied.set(applied)
        if error is not None and error != before.error:
            self._metrics.registry_events.labels("file_refused").inc()
            log.error("registry file refused; what was in force stays", path=path, reason=error)
        if conflict is not None and conflict != before.conflict:
            self._metrics.registry_events.labels("file_conflict").inc()
            log.warning(
                "another replica's registry file is in force, and differs from this one's", path=path, of=conflict
            )
