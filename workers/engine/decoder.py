"""From token bytes to text that may leave: whole characters only, and nothing that could still be a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class StopString:
    """Follows one stop string through a text, character by character (Knuth, Morris and Pratt).

    `num_matched` is how much of it the text so far ends with.
    """

    __slots__ = ("_fallback", "_text", "num_matched")

    def __init__(self, text: str) -> None:
        self._text = text
        self.num_matched = 0
        self._fallback = [0] * len(text)
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self._fallback[length - 1]
            if text[index] == text[length]:
                length += 1
            self._fallback[index] = length

    def push(self, character: str) -> bool:
        """Whether the stop string is complete; nothing may be pushed after that."""
        matched = self.num_matched
        while matched and self._text[matched] != character:
            matched = self._fallback[matched - 1]
        if self._text[matched] == character:
            matched += 1
        self.num_matched = matched
        return matched == len(self._text)


class TextDecoder:
    """Incremental text of one choice. Invalid bytes become U+FFFD, as with `bytes.decode(errors="replace")`.

    The text ends before the stop string that is complete first; of two that end together, before the longer one.
    """

    __slots__ = ("_held", "_stops", "_utf8", "stopped")

    def __init__(self, stop: Iterable[str]) -> None:
        self._utf8 = _new_utf8_decoder("replace")
        self._stops = [StopString(text) for text in stop if text]
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """The text that can leave now that `piece` has come."""
        text = self._utf8.decode(piece)
        return self._filter(text) if self._stops else text

    def finish(self) -> str:
        """What is still held back, with U+FFFD for a character that never became whole."""
        text = self._utf8.decode(b"", final=True)
        if not self._stops:
            return text
        text = self._filter(text)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _filter(self, text: str) -> str:
        if self.stopped:
            return ""
        pending = self._held + text
        for index, character in enumerate(text, start=len(self._held) + 1):
            complete = [stop.num_matched for stop in self._stops if stop.push(character)]
            if complete:
                self.stopped = True
                self._held = ""
                return pending[: index - max(complete)]
        num_free = len(pending) - max(stop.num_matched for stop in self._stops)
        self._held = pending[num_free:]
        return pending[:num_free]
