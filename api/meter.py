"""The meter: what one exchange adds to the metrics and to the log."""

from __future__ import annotations

from inferflux.broker.errors import Code
from inferflux.broker.trace import Trace
from inferflux.config.logs import get_logger
from inferflux.config.metrics import ApiMetrics

from .replies import TapeFrame

log = get_logger("api")

COUNT_INTERVAL_S = 0.25


class Meter:
    """Times are on the monotonic clock; `started_s` is when the request came in. Who reads an answer that was started
    for somebody else is not `fresh`: how long that takes says nothing about the fleet."""

    def __init__(
        self,
        metrics: ApiMetrics,
        model: str,
        request: str,
        started_s: float,
        *,
        fresh: bool = True,
        trace: Trace | None = None,
    ) -> None:
        self._metrics = metrics
        self._trace = trace
        self._model = model
        self._request = request
        self._started_s = started_s
        self._fresh = fresh
        self._first_s: float | None = None
        self._last_s: dict[int, float] = {}
        self._num_tokens = 0
        self._num_counted = 0
        self._count_s = started_s
        self._reason = "stop"
        self._code: str | None = Code.CANCELLED.value
        self._tokens = metrics.stream_tokens.labels(model)
        self._between = metrics.inter_token_latency.labels(model)
        metrics.streams_open.labels(model).inc()

    def note(self, batch: list[TapeFrame], now_s: float) -> None:
        """Count what is relayed now."""
        num_tokens = 0
        for _, frame in batch:
            if frame.num_tokens:
                num_tokens += frame.num_tokens
                before_s = self._last_s.get(frame.choice)
                self._last_s[frame.choice] = now_s
                if before_s is not None and before_s != now_s:
                    self._between.observe(now_s - before_s)
            if frame.finish_reason is not None:
                self._reason = frame.finish_reason
            if frame.terminal:
                self._code = frame.error.code if frame.error is not None else None
        if num_tokens:
            self._num_tokens += num_tokens
            if self._first_s is None:
                self._first_s = now_s
                if self._fresh:
                    self._metrics.time_to_first_token.labels(self._model).observe(now_s - self._started_s)
            if now_s >= self._count_s:
                self._count(now_s)

    def close(self, now_s: float) -> None:
        """The exchange is over; without a terminal frame it was cancelled."""
        took_s = now_s - self._started_s
        self._count(now_s)
        self._metrics.streams_open.labels(self._model).dec()
        if self._fresh:
            self._metrics.e2e_request_latency.labels(self._model).observe(took_s)
        if self._code is None:
            self._metrics.request_success.labels(self._model, self._reason).inc()
        else:
            self._metrics.request_errors.labels(self._model, self._code).inc()
        if self._trace is not None:
            first_s = None if self._first_s is None else self._first_s - now_s
            self._trace.answered(self._request, self._reason, self._num_tokens, first_s, error=self._code)
        log.info(
            "answered" if self._code is None else "not answered",
            request=self._request,
            code=self._code,
            num_tokens=self._num_tokens,
            first_token_s=None if self._first_s is None else round(self._first_s - self._started_s, 4),
            took_s=round(took_s, 4),
        )

    def _count(self, now_s: float) -> None:
        # A counter takes a lock; a few times a second is as fresh as anybody scrapes.
        self._tokens.inc(self._num_tokens - self._num_counted)
        self._num_counted = self._num_tokens
        self._count_s = now_s + COUNT_INTERVAL_S
