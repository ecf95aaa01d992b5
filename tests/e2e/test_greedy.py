"""What comes out of the whole path is what llama.cpp itself would have said."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from harness.greedy import GreedyReference
from harness.model import model_path
from harness.server import KEY, Server

pytestmark = [pytest.mark.model, pytest.mark.integration]

NUM_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Ünïcödé and 日本語 and 🙂:",
)


@pytest.fixture(scope="module")
def expected() -> Iterator[dict[str, str]]:
    reference = GreedyReference(model_path(), num_threads=1)
    yield {prompt: reference.text(reference.generate(reference.tokenize(prompt), NUM_TOKENS)) for prompt in PROMPTS}
    reference.close()


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_output_is_llama_cpps_own(model_server: Server, expected: dict[str, str], prompt: str) -> None:
    request = {"model": "smollm2", "prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0}
    with openai.OpenAI(base_url=model_server.url + "/v1", api_key=KEY, max_retries=0, timeout=60) as client:
        whole = client.completions.create(**request).choices[0].text
        chunks = list(client.completions.create(**request, stream=True))
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert whole == expected[prompt]
    assert streamed == expected[prompt]
