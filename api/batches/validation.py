"""Validation: a whole file looked through before the first of its lines runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from inferflux.broker.errors import RequestError
from inferflux.broker.wire.batches import LineProblem

from .splitter import Line
from .task import LineError, read_task

MAX_PROBLEMS = 100
DIGEST_BYTES = 16


class Validation:
    """Of 50,000 lines it keeps a digest of each `custom_id`, and the first problems.

    `resolve` turns what a line calls its model into the model's id; it raises RequestError for one that cannot be used.
    """

    def __init__(
        self, endpoint: str, max_lines: int, max_line_bytes: int, resolve: Callable[[str | None], str | None]
    ) -> None:
        self.num_lines = 0
        self.num_problems = 0
        self.problems: list[LineProblem] = []
        self.model: str | None = None
        self._endpoint = endpoint
        self._max_lines = max_lines
        self._max_line_bytes = max_line_bytes
        self._resolve = resolve
        self._seen: set[bytes] = set()

    def add(self, line: Line) -> None:
        """Look at the next line."""
        self.num_lines += 1
        if self.num_lines > self._max_lines:
            if self.num_lines == self._max_lines + 1:
                self._note("too_many_lines", f"A batch may have {self._max_lines} requests at most.", None, line.number)
            return
        try:
            task = read_task(line, self._endpoint, self._max_line_bytes)
            self._check_id(task.custom_id)
            self._check_model(task.ask.model)
        except LineError as error:
            self._note(error.code, error.message, error.param, line.number)

    def close(self) -> None:
        """The file has ended."""
        if not self.num_lines:
            self._note("empty_file", "The file has no lines: a batch needs at least one request.", None, None)

    def _check_id(self, custom_id: str) -> None:
        digest = hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
        if digest in self._seen:
            raise LineError(
                "duplicate_custom_id",
                f"The custom_id {custom_id[:80]!r} is on an earlier line too; each must be there once.",
                "custom_id",
            )
        self._seen.add(digest)

    def _check_model(self, name: str | None) -> None:
        try:
            model = self._resolve(name)
        except RequestError as error:
            raise LineError(error.code.value, error.message, "body.model") from None
        if self.model is None:
            self.model = model
        elif model != self.model:
            raise LineError(
                "mismatched_model",
                f"The model {str(name)[:80]!r} is not that of the first request, {self.model!r}: "
                "all requests of a batch must be for one model.",
                "body.model",
            )

    def _note(self, code: str, message: str, param: str | None, line: int | None) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(LineProblem(code=code, message=message, param=param, line=line))
