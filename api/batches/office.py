"""The office: what one replica does for batches and files, and its life."""

from __future__ import annotations

from .batches import Batches
from .housekeeper import Housekeeper
from .keeper import Keeper
from .services import Services
from .submissions import Submissions


class Office:
    """`replica` is the name under which it owns batches."""

    def __init__(self, services: Services, replica: str) -> None:
        self.submissions = Submissions(services)
        self.keeper = Keeper(services, replica, self.submissions)
        self.housekeeper = Housekeeper(services, self.keeper.agenda)
        self.batches = Batches(services, self.keeper.agenda)

    def start(self) -> None:
        self.keeper.start()
        self.housekeeper.rounds.start()

    async def close(self) -> None:
        await self.housekeeper.rounds.close()
        await self.keeper.close()
        await self.submissions.close()
