from __future__ import annotations

import msgspec
import pytest

from inferflux.broker.broker import Entry
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat
from inferflux.registry.fleet import Fleet


def beat(worker: str, *models: ModelBeat, draining: bool = False) -> Entry:
    message = WorkerBeat(
        worker=worker, epoch="e", host="h", pid=1, started=0.0, at=0.0, models=models, draining=draining
    )
    return Entry(worker, encode(message), 1)


def test_absence_counts_from_the_start_until_a_worker_comes() -> None:
    fleet = Fleet(100.0)

    assert fleet.absent_for("m", 107.0) == 7.0
    fleet.apply(beat("w1", ModelBeat(id="m", backend="stub", state="loading")), 107.0)
    assert fleet.absent_for("m", 109.0) == 0.0
    assert fleet.absent_for("other", 109.0) == 9.0


def test_absence_counts_from_when_the_last_worker_went() -> None:
    fleet = Fleet(0.0)
    for worker in ("w1", "w2"):
        fleet.apply(beat(worker, ModelBeat(id="m", backend="stub")), 1.0)

    fleet.apply(Entry("w1", None, 2), 50.0)
    assert fleet.absent_for("m", 51.0) == 0.0
    fleet.apply(Entry("w2", None, 3), 60.0)
    assert fleet.absent_for("m", 63.0) == 3.0


@pytest.mark.parametrize(
    "last",
    [
        beat("w1", ModelBeat(id="m", backend="stub", state="failed")),
        beat("w1", ModelBeat(id="m", backend="stub"), draining=True),
        beat("w1"),
    ],
)
def test_failed_draining_or_unloaded_is_absent(last: Entry) -> None:
    fleet = Fleet(0.0)
    fleet.apply(beat("w1", ModelBeat(id="m", backend="stub")), 1.0)

    fleet.apply(last, 10.0)

    assert fleet.absent_for("m", 12.0) == 2.0


def test_models_come_ready_first() -> None:
    fleet = Fleet(0.0)
    fleet.apply(beat("w1", ModelBeat(id="m", backend="stub", state="loading")), 0.0)
    fleet.apply(beat("w2", ModelBeat(id="m", backend="stub", context_length=64)), 0.0)

    assert [model.state for model in fleet.models("m")] == ["ready", "loading"]
    assert [worker.worker for worker in fleet.workers()] == ["w1", "w2"]


def test_watch_that_began_anew_forgets_who_is_gone() -> None:
    fleet = Fleet(0.0)
    for worker in ("w1", "w2"):
        fleet.apply(beat(worker, ModelBeat(id="m", backend="stub")), 0.0)

    fleet.forget_absent({"w2"}, 5.0)

    assert [worker.worker for worker in fleet.workers()] == ["w2"]


def test_value_that_is_no_heartbeat_changes_nothing() -> None:
    fleet = Fleet(0.0)
    with pytest.raises(msgspec.DecodeError):
        fleet.apply(Entry("w1", b"{}", 1), 0.0)

    assert fleet.workers() == ()
