"""`inferctl chat`: a conversation, or one message of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import terminal
from .completion import MaxTokens, Model, Seed, Stop, Temperature, TopP, given
from .errors import CommandFailed, ServerRefused
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json

if TYPE_CHECKING:
    from .client import Client

_GREETING = "Chatting with {model}. /reset forgets the conversation, /exit ends it."


class Conversation:
    """Messages so far, and the way to add a turn. `options` go along with each request."""

    def __init__(self, client: Client, system: str | None, options: dict[str, Any]) -> None:
        self._client = client
        self._opening = [{"role": "system", "content": system}] if system else []
        self._options = options
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages = list(self._opening)

    def ask(self, text: str, *, resumable: bool = True) -> Generator[dict[str, Any], None, None]:
        """The chunks of the answer to one more message. A turn that got any answer is kept, a broken-off one too."""
        self.messages.append({"role": "user", "content": text})
        answer = ""
        try:
            with contextlib.closing(
                self._client.stream("/v1/chat/completions", self._body(), resumable=resumable)
            ) as chunks:
                for chunk in chunks:
                    answer += content(chunk)
                    yield chunk
        finally:
            if answer:
                self.messages.append({"role": "assistant", "content": answer})
            else:
                self.messages.pop()

    def ask_at_once(self, text: str) -> dict[str, Any]:
        """The whole answer to one more message."""
        self.messages.append({"role": "user", "content": text})
        return self._client.post("/v1/chat/completions", self._body())

    def _body(self) -> dict[str, Any]:
        return {"messages": self.messages, **self._options}


def chat(
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Talk turn by turn.")] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", help="One message; stdin unless given.")] = None,
    system: Annotated[str | None, typer.Option("--system", help="Instructions that come first.")] = None,
    model: Model = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print tokens as they come.")] = True,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Chat with a model. With --json each chunk, or the answer without --stream, is one line of JSON."""
    if interactive and (prompt is not None or as_json or not stream):
        raise CommandFailed("--interactive goes with neither --prompt, --json nor --no-stream")
    options = given(model=model, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    with connect(url, api_key) as client:
        conversation = Conversation(client, system, options)
        if interactive:
            terminal.note(_GREETING.format(model=model or "the default model"))
            _converse(conversation)
            return
        prompt = terminal.read_prompt() if prompt is None else prompt
        if not prompt:
            raise CommandFailed('there is no message: pass --prompt "...", pipe one in, or use --interactive')
        if not stream:
            answer = conversation.ask_at_once(prompt)
            print_json(answer) if as_json else terminal.write(answer["choices"][0]["message"]["content"] + "\n")
            return
        with contextlib.closing(conversation.ask(prompt)) as chunks:
            for chunk in chunks:
                print_json(chunk) if as_json else terminal.write(content(chunk))
    if not as_json:
        terminal.write("\n")


def content(chunk: dict[str, Any]) -> str:
    """The text that a chat chunk adds."""
    return (chunk["choices"][0]["delta"].get("content") or "") if chunk["choices"] else ""


def _converse(conversation: Conversation) -> None:
    while True:
        line = _read_line()
        if line is None or line == "/exit":
            return
        if line == "/reset":
            conversation.reset()
            terminal.note("Forgotten.")
        elif line.startswith("/"):
            terminal.note("Commands are /reset and /exit.")
        elif line:
            _answer(conversation, line)


def _answer(conversation: Conversation, line: str) -> None:
    chunks = conversation.ask(line, resumable=False)
    try:
        for chunk in chunks:
            terminal.write(content(chunk))
    except KeyboardInterrupt:
        # Closing the generator closes the connection, which cancels the request.
        chunks.close()
    except ServerRefused as refusal:
        terminal.note(f"inferctl: {refusal}")
    terminal.write("\n")


def _read_line() -> str | None:
    """A line typed by the user, or None at the end of input or on Ctrl-C."""
    if sys.stdin.isatty():
        # Importing readline gives input() history and editing.
        import readline  # noqa: F401
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        terminal.note("")
        return None
