"""An upload: a multipart form taken apart as it comes, its file handed on piece by piece."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from multipart import MultipartError, MultipartSegment, ParserLimitReached, PushMultipartParser, parse_options_header

from inferflux.broker.errors import Code, RequestError

MAX_FIELD_BYTES = 16 * 1024
MAX_PARTS = 32
FORM = "multipart/form-data"

Take = Callable[[bytes | bytearray], Awaitable[None]]


class Upload:
    """The form's fields, once it is read, and the name that the file came under."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None

    async def read(self, content_type: str, chunks: AsyncIterator[bytes], take: Take) -> None:
        """Hand the bytes of the part `file` to `take`. Raises RequestError for what is no such form."""
        boundary = _boundary(content_type)
        segment: MultipartSegment | None = None
        value = bytearray()
        try:
            with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
                async for chunk in chunks:
                    for event in parser.parse(chunk) if chunk else ():
                        if isinstance(event, MultipartSegment):
                            segment = event
                            value.clear()
                            self._open(event)
                        elif event is None:
                            self._close(segment, value)
                            segment = None
                        elif segment is not None and segment.name == "file":
                            await take(event)
                        else:
                            value += event
                            _check_field(segment, value)
        except ParserLimitReached:
            raise RequestError(Code.INVALID_REQUEST, "the form has too many or too long parts") from None
        except MultipartError as error:
            raise RequestError(Code.INVALID_REQUEST, f"the body is not a valid form: {error}") from None

    def _open(self, segment: MultipartSegment) -> None:
        if segment.name != "file":
            return
        if self.filename is not None:
            raise RequestError(Code.INVALID_REQUEST, "'file': send one file at a time", param="file")
        self.filename = _plain(segment.filename or "file.jsonl")

    def _close(self, segment: MultipartSegment | None, value: bytearray) -> None:
        if segment is None or segment.name == "file":
            return
        try:
            self.fields[segment.name] = value.decode()
        except UnicodeDecodeError:
            raise RequestError(
                Code.INVALID_REQUEST, f"'{segment.name[:64]}': is not valid UTF-8", param=segment.name[:64]
            ) from None


def _boundary(content_type: str) -> str:
    kind, options = parse_options_header(content_type)
    if kind != FORM:
        raise RequestError(Code.UNSUPPORTED_MEDIA_TYPE, f"send the file as {FORM}, not {kind[:100] or 'nothing'}")
    boundary = options.get("boundary")
    if not boundary:
        raise RequestError(Code.INVALID_REQUEST, "the Content-Type header names no boundary")
    return str(boundary)


def _check_field(segment: MultipartSegment | None, value: bytearray) -> None:
    if len(value) > MAX_FIELD_BYTES:
        name = segment.name[:64] if segment is not None else ""
        raise RequestError(Code.INVALID_REQUEST, f"'{name}': is too long", param=name)


def _plain(name: str) -> str:
    """A name without a path and without control characters."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in base if char.isprintable())[:255] or "file.jsonl"
