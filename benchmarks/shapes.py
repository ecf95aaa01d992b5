"""The shapes of load: what clients ask, and how many answers in a row a conversation has."""

from __future__ import annotations

import random
from typing import Any

import msgspec

# Everyday words that are one token each in most vocabularies.
WORDS = """
air animal area art back base bed bird blue boat body book box boy bridge build call car care case cat center change
child church circle city class clear close cloud coast cold color common corn cost cotton country course cover cross
dark deal deep design dinner direct distance doctor door draw dress drive earth east edge energy engine evening exercise
eye face fact fall family farm father feet field figure fire fish floor flow food foot force forest form free friend
front fruit game garden glass gold good grass green ground group hand hard heart heat heavy hill history home horse
hour house ice idea island job keep key kind king lake land language large law lead left letter level life light line
list machine map mark market matter measure metal milk mind minute money moon morning mother mountain music name
nature night north note number object ocean office oil order page paint paper part party path pattern person phrase
picture piece place plain plane plant point port pound power press problem product question quick race rail rain range
record red rest rice ring river road rock roll room root rose rule safe sail salt sand scale school science sea season
seat section seed sense service shape ship shoe shop short side sign silver skin sleep small snow soft soil song sound
south space spring square stand star state station steel step stone store storm story stream street string summer sun
surface system table tail teacher team test thing time tire tone tool top town trade train travel tree triangle truck
type unit valley value view village voice wall war warm watch water wave way weather week weight wheel white wind window
winter wire woman wood word work world yard year yellow
""".split()  # noqa: SIM905 - three hundred quoted words read worse


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """`num_words` new words for each question after `num_shared` words that all questions begin with; answers of
    `num_tokens`; with more than one turn a conversation goes on with its own history, as a chat."""

    num_words: int = 60
    num_shared: int = 0
    num_tokens: int = 64
    num_turns: int = 1

    @property
    def path(self) -> str:
        return "/v1/completions" if self.num_turns == 1 else "/v1/chat/completions"


SHAPES = {
    "short": Shape(),
    "shared": Shape(num_shared=250),
    "chat": Shape(num_turns=8),
    "long": Shape(num_words=4000),
}


class Conversation:
    """Bodies of the requests of one conversation, turn by turn. The same seed and number give the same words."""

    def __init__(self, shape: Shape, model: str, seed: int, number: int) -> None:
        self._shape = shape
        self._model = model
        self._draw = random.Random(f"{seed}/{number}")
        shared = random.Random(f"{seed}/shared")
        self._shared = " ".join(shared.choices(WORDS, k=shape.num_shared))
        self._messages: list[dict[str, str]] = []

    def question(self) -> dict[str, Any]:
        """The next turn's request."""
        text = " ".join(filter(None, (self._shared, *self._draw.choices(WORDS, k=self._shape.num_words))))
        body: dict[str, Any] = {"model": self._model} if self._model else {}
        body |= {"max_tokens": self._shape.num_tokens, "temperature": 0.0, "ignore_eos": True}
        if self._shape.num_turns == 1:
            return {**body, "prompt": text}
        self._messages.append({"role": "user", "content": text})
        return {**body, "messages": list(self._messages)}

    def answered(self, text: str) -> None:
        """What the server said becomes history."""
        self._messages.append({"role": "assistant", "content": text})
