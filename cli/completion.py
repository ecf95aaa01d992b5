"""`inferctl completion`: one prompt, one answer."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from . import terminal
from .errors import CommandFailed
from .options import DEFAULT_URL, ApiKey, Json, Url, connect, print_json

Model = Annotated[str | None, typer.Option("--model", help="Model id; the server's default model unless given.")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Tokens to generate at most.")]
Temperature = Annotated[float | None, typer.Option("--temperature", min=0.0, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option("--top-p", min=0.0, max=1.0, help="Nucleus sampling.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be repeated.")]


def completion(
    prompt: Annotated[str | None, typer.Option("--prompt", help="The prompt; stdin unless given.")] = None,
    model: Model = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come.")] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Complete a prompt. With --stream --json each chunk is one line of JSON."""
    prompt = terminal.read_prompt() if prompt is None else prompt
    if not prompt:
        raise CommandFailed('there is no prompt: pass --prompt "..." or pipe one in')
    options = given(model=model, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop)
    body = {"prompt": prompt, **options}
    with connect(url, api_key) as client:
        if not stream:
            answer = client.post("/v1/completions", body)
            print_json(answer) if as_json else terminal.write(answer["choices"][0]["text"] + "\n")
            return
        with contextlib.closing(client.stream("/v1/completions", body)) as chunks:
            for chunk in chunks:
                if as_json:
                    print_json(chunk)
                elif chunk["choices"]:
                    terminal.write(chunk["choices"][0]["text"])
    if not as_json:
        terminal.write("\n")


def given(**options: Any) -> dict[str, Any]:
    """The options that were given, so that the server's own defaults hold for the rest."""
    return {name: value for name, value in options.items() if value not in (None, [])}
