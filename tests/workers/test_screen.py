"""What guardrails hold back of an answer: whatever the tokens, a term never leaves, and everything else does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from inferflux.broker.broker import Tape, TapeEntry
from inferflux.broker.subjects import RequestKey
from inferflux.broker.wire.base import encode
from inferflux.broker.wire.policies import Guardrails, GuardrailSet
from inferflux.broker.wire.requests import Frame, TokenLogprob, decode_frame
from inferflux.config.settings import GuardrailSettings
from inferflux.registry.guardrails.guard import Guard
from inferflux.registry.guardrails.policy import Policy
from inferflux.workers.answer import Answer, End, Label
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.engine.job import Job, Update
from inferflux.workers.replay import EMPTY, Replay
from inferflux.workers.seal import Sealer

SEAL = Sealer(b"a secret of the workers").request(RequestKey("a-r", "r"), 1)
BLOCKED, REDACTED = "top secret", "john@example.com"
SETTINGS = GuardrailSettings(blocklist=(BLOCKED, "pii"))
REDACT_PII = Guardrails(sets={"pii": GuardrailSet(action="redact")})


def guard(*blocklist: str, changed: Guardrails = REDACT_PII) -> Guard:
    made = Guard(GuardrailSettings(blocklist=blocklist or SETTINGS.blocklist))
    made.policy = Policy(GuardrailSettings(blocklist=blocklist or SETTINGS.blocklist), changed)
    return made


class Script:
    """An answer whose choices say what they are told, one token at a time, and the frames that it sent."""

    def __init__(self, by: Guard, num_choices: int = 1, tape: Tape = EMPTY, *, attempt: int = 7, **job: Any) -> None:
        self.frames: list[Frame] = []
        self.cut: list[int] = []
        replay = Replay(tape, SEAL)
        jobs = [
            Job(request="r", choice=number, prompt=(1,), max_tokens=99, resumed=replay.choice(number).tokens, **job)
            for number in range(num_choices)
        ]
        self.answer = Answer(
            "r", jobs, replay, SEAL, Label("m", "stub"), lambda body: self.frames.append(decode_frame(body))
        )
        self.answer.screen_by(by)
        self.answer.on_cut = self.cut.append
        self.answer.begin(attempt)
        self.next = [len(job.resumed) for job in jobs]

    def say(self, *texts: str, choice: int = 0, end: bool = False, logprobs: bool = False) -> None:
        for number, text in enumerate(texts):
            told = TokenLogprob(token=text, logprob=-1.0, bytes=tuple(text.encode())) if logprobs else None
            self.answer.push(
                Update(
                    request="r",
                    choice=choice,
                    index=self.next[choice],
                    tokens=(100 + self.next[choice],),
                    text=text,
                    logprobs=None if told is None else (told,),
                    finish_reason="stop" if end and number == len(texts) - 1 else None,
                )
            )
            self.next[choice] += 1
        self.answer.flush()

    @property
    def told(self) -> list[Frame]:
        """Every frame, the terminal one last if the answer has ended."""
        ended = self.answer.ended.done()
        return [*self.frames, decode_frame(self.answer.terminal())] if ended else self.frames

    def text(self, choice: int = 0) -> str:
        return "".join(frame.text for frame in self.told if frame.choice == choice)

    def tape(self) -> Tape:
        return Tape(None, 0, tuple(TapeEntry(seq, encode(frame)) for seq, frame in enumerate(self.frames, 1)))


async def test_a_text_without_matches_leaves_at_once_and_whole() -> None:
    script = Script(guard("top secret"))
    script.say("We", " are", " fine")
    assert script.text() == "We are fine"
    assert script.frames[-1].num_tokens == 3
    script.say(".", end=True)
    assert script.text() == "We are fine."
    assert script.told[-1].finish_reason == "stop"


async def test_only_the_tokens_that_may_still_become_a_match_wait() -> None:
    script = Script(guard("top secret"))
    script.say("The", " to", "p")
    assert script.text() == "The"
    script.say(" se")
    assert script.text() == "The"
    script.say("ven", " things")
    assert script.text() == "The top seven things"
    assert [frame.num_tokens for frame in script.frames] == [1, 5]


async def test_a_block_ends_the_choice_before_the_match_and_tells_nothing_of_it() -> None:
    script = Script(guard("top secret"))
    script.say("It is t", "op sec", "ret", " and more", logprobs=True)
    assert await script.answer.ended is End.FINISHED
    (last,) = script.told
    assert (last.text, last.finish_reason, last.num_tokens, last.logprobs) == ("It is ", "content_filter", 0, None)
    assert script.cut == [0]
    assert [rule.guardrail for rule in script.answer.blocked] == ["blocklist"]
    assert last.usage is not None
    assert last.sealed is None


async def test_a_blocked_choice_leaves_the_others_alone() -> None:
    script = Script(guard("top secret"), 2)
    script.say("top secret ", choice=0)
    script.say("hello", choice=1)
    assert not script.answer.ended.done()
    assert [job.choice for job in script.answer.open_jobs] == [1]
    script.say(" late", choice=0)
    script.say(" you", choice=1, end=True)
    assert (script.text(0), script.text(1)) == ("", "hello you")


async def test_redaction_replaces_the_text_and_hides_what_is_known_of_its_tokens() -> None:
    script = Script(guard(), sampling=SamplingParams(num_logprobs=0))
    script.say("to", " jo", "hn@exam", "ple.com", " now", ".", end=True, logprobs=True)
    assert script.text() == "to [redacted:pii.mail] now."
    tokens = [each for frame in script.told for each in frame.logprobs or ()]
    assert [each.token for each in tokens] == ["to", "", "", "", " now", "."]
    assert len([piece for frame in script.told for piece in frame.pieces or (frame.text,)]) >= 6
    assert all(SEAL.unseal(frame) for frame in script.told if frame.num_tokens)


async def test_alternatives_do_not_tell_what_is_blocked() -> None:
    script = Script(guard("secret"), sampling=SamplingParams(num_logprobs=2))
    top = tuple(TokenLogprob(token=token, logprob=-1.0) for token in (" plan", " secret"))
    told = TokenLogprob(token=" plan", logprob=-1.0, top=top)
    script.answer.push(
        Update(request="r", choice=0, index=0, tokens=(1,), text=" plan", logprobs=(told,), finish_reason="stop")
    )
    script.answer.flush()
    (frame,) = script.told
    assert [each.token for each in (frame.logprobs or ())[0].top] == [" plan"]


async def test_logprobs_wait_for_text_that_stop_strings_hold() -> None:
    """The engine's text lags behind its tokens: the token that says `sec` has no text yet."""
    script = Script(guard("secret"), stop=("secx",), sampling=SamplingParams(num_logprobs=0))
    for token, text in (("a", "a"), (" sec", " "), ("ret", "secret"), ("!", "!")):
        told = TokenLogprob(token=token, logprob=-1.0)
        script.answer.push(
            Update(request="r", choice=0, index=script.next[0], tokens=(7,), text=text, logprobs=(told,))
        )
        script.next[0] += 1
        script.answer.flush()
    assert script.text() == "a "
    assert "sec" not in "".join(each.token for frame in script.told for each in frame.logprobs or ())


async def test_a_flag_changes_nothing_and_is_counted() -> None:
    by = guard(
        "project x",
        changed=Guardrails(active=("names",), sets={"names": GuardrailSet(terms=("project x",), action="flag")}),
    )
    hits: list[tuple[str, str, str]] = []
    by.on_hit = lambda *hit: hits.append(hit)
    script = Script(by)
    script.say("on ", "Project", " X", " now", end=True)
    assert script.text() == "on Project X now"
    assert hits == [("output", "names", "flag")]


async def test_a_change_of_the_policy_holds_from_the_next_token_on() -> None:
    by = guard("nothing of it")
    script = Script(by)
    script.say("This is to", "p")
    by.policy = Policy(GuardrailSettings(blocklist=("secret",)), Guardrails())
    script.say(" sec")
    assert script.text() == "This is top"
    by.policy = Policy(GuardrailSettings(), Guardrails())
    script.say("ret!")
    assert script.text() == "This is top secret!"


async def test_no_output_guardrail_costs_no_screen() -> None:
    script = Script(guard("x", changed=Guardrails(active=())))
    script.say("any", "thing")
    assert all(choice.screen is None for choice in script.answer._choices.values())


PIECES = st.lists(
    st.sampled_from(
        [
            "top",
            " top",
            " secret",
            "secret",
            " sec",
            "ret",
            "s",
            " ",
            "to",
            "p",
            "\u200b",
            "TOP",
            "\n",
            "x",
            " a",
            ".",
            "é",
            "john",
            "@",
            "example",
            ".com",
            "jo",
            " john@",
            "hn@example.com ",
        ]
    ),
    min_size=1,
    max_size=16,
)


def whole(text: str) -> tuple[str, bool]:
    """What may be told of a complete text, and whether it is cut."""
    matcher = guard().policy.output
    assert matcher is not None
    parts, at = [], 0
    for hit in matcher.find(text):
        parts.append(text[at : hit.start])
        if hit.rule.action == "block":
            return "".join(parts), True
        parts.append(hit.rule.marker)
        at = hit.end
    return "".join(parts) + text[at:], False


def tell(script: Script, tokens: Sequence[str], *, flush_each: bool) -> None:
    if flush_each:
        for number, token in enumerate(tokens):
            script.say(token, end=number == len(tokens) - 1, logprobs=True)
    else:
        script.say(*tokens, end=True, logprobs=True)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.booleans())
async def test_however_a_text_is_cut_into_tokens_the_same_leaves(tokens: list[str], flush_each: bool) -> None:
    script = Script(guard(), sampling=SamplingParams(num_logprobs=0))
    tell(script, tokens, flush_each=flush_each)
    assert script.answer.ended.done()
    text, cut = whole("".join(tokens))
    assert script.text() == text
    assert script.told[-1].finish_reason == ("content_filter" if cut else "stop")
    if not cut:
        assert sum(frame.num_tokens for frame in script.told) == len(tokens)
    matcher = guard().policy.output
    assert matcher is not None
    shown = "".join(each.token or "|" for frame in script.told for each in frame.logprobs or ())
    assert not matcher.find(shown)


@settings(max_examples=300, deadline=None)
@given(PIECES, st.integers(0, 16))
async def test_a_later_attempt_goes_on_from_what_left(tokens: list[str], killed_after: int) -> None:
    """The worker dies with text held back; the next regenerates it, and the reader sees what it would have seen."""
    first = Script(guard(), attempt=7)
    for number, token in enumerate(tokens[:killed_after]):
        first.say(token, end=number == len(tokens) - 1)
        if first.answer.ended.done():
            return
    sent = sum(frame.num_tokens for frame in first.frames)
    second = Script(guard(), tape=first.tape(), attempt=9)
    assert second.next == [sent]
    tell(second, tokens[sent:], flush_each=True)
    text, cut = whole("".join(tokens))
    assert first.text() + second.text() == text
    assert second.told[-1].finish_reason == ("content_filter" if cut else "stop")
