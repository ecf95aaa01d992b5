"""Every scenario holds on the system as it is, and fails as soon as the safeguard that it is about is taken away."""

from __future__ import annotations

import pytest
from chaos.conftest import Scale
from chaos.mutations import MUTATIONS, Mutation
from chaos.scenarios import SCENARIOS, Scenario
from harness.fleet import Fleet
from harness.nats import NatsServers

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_nothing_is_lost_or_doubled(scenario: Scenario, nats: NatsServers, scale: Scale) -> None:
    for _ in range(scale.rounds):
        async with Fleet(nats) as fleet:
            await scenario(fleet)


@pytest.mark.parametrize(
    "mutation", MUTATIONS, ids=lambda mutation: f"{mutation.apply.__name__}-{mutation.noticed_by.__name__}"
)
async def test_a_mutant_is_noticed(
    mutation: Mutation, nats: NatsServers, scale: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (mutation.short or scale.long):
        pytest.skip("the long form runs all mutants: scripts/chaos.sh")
    async with Fleet(nats) as fleet:
        mutation.apply(monkeypatch)
        with pytest.raises(AssertionError):
            await mutation.noticed_by(fleet)
        monkeypatch.undo()


def test_every_scenario_but_none_without_a_mutant() -> None:
    assert {mutation.noticed_by for mutation in MUTATIONS} == set(SCENARIOS)
