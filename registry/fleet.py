"""The fleet as its heartbeats show it: which workers live, and what each has ready."""

from __future__ import annotations

from inferflux.broker.broker import Entry
from inferflux.broker.wire.fleet import ModelBeat, WorkerBeat, decode_beat


class Fleet:
    """A pure view over the `workers` bucket; `started_s` is when this view began."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._beats: dict[str, WorkerBeat] = {}
        self._left_s: dict[str, float] = {}

    def apply(self, entry: Entry, now_s: float) -> None:
        """Take in one change of the bucket. Raises msgspec.DecodeError for a value that is no heartbeat."""
        before = self._served_models()
        if entry.value is None:
            self._beats.pop(entry.key, None)
        else:
            self._beats[entry.key] = decode_beat(entry.value)
        for model in before - self._served_models():
            self._left_s[model] = now_s

    def forget_absent(self, keys: set[str], now_s: float) -> None:
        """Drop workers whose entries are gone; for after a watch began anew."""
        for key in self._beats.keys() - keys:
            self.apply(Entry(key, None, 0), now_s)

    def workers(self) -> tuple[WorkerBeat, ...]:
        return tuple(self._beats[key] for key in sorted(self._beats))

    def has_worker(self, worker: str) -> bool:
        """Whether a worker of this name lives, draining or not."""
        return any(beat.worker == worker for beat in self._beats.values())

    def models(self, model: str) -> list[ModelBeat]:
        """The model as each live worker that does not drain reports it, ready ones first."""
        beats = [beat for worker in self._beats.values() if not worker.draining for beat in worker.models]
        return sorted((beat for beat in beats if beat.id == model), key=lambda beat: beat.state != "ready")

    def absent_for(self, model: str, now_s: float) -> float:
        """Seconds since a worker last had the model ready or loading; 0 while one has."""
        if model in self._served_models():
            return 0.0
        return max(0.0, now_s - self._left_s.get(model, self._started_s))

    def _served_models(self) -> set[str]:
        return {
            beat.id
            for worker in self._beats.values()
            if not worker.draining
            for beat in worker.models
            if beat.state != "failed"
        }
