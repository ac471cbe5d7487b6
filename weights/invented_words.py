"""Names and facts that examples/data does not have, for the last stage of pretrain_t5_mini.py.

The generator forms names from lists of parts, and states facts in a fixed set of sentences. Here are names
spelled at random, names that differ from another one in their end only, and facts whose verbs and nouns are
invented, as in "Jabberwocky": what it means that Mirela "drims" something, only another sentence with this
word can tell. `story` mixes them with the generator's and with those of english_words.py.
"""

from collections.abc import Callable
from random import Random

import english_words
import make_qa
from qa_language import ANIMALS, COLOURS, DAYS, FOODS, JOBS, Fact, Names, Word, number, words

SPELLED, SIMILAR = 0.2, 0.1  # fractions of names
INVENTED, ENGLISH = 0.15, 0.3  # fractions of stories whose facts are invented, or of english_words.py

ONSETS = words(
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p ph pl pr qu r s sh sk sl st t th tr "
    "v w x y z"
)
VOWELS = words("a a a e e e i i o o u ai au ea ee ia ie io oo ou y")
CODAS = ["", "", "", *words("b ck d f g k l ll m n n nd ng ns r r rt s s sk ss st t t tt v x z")]

VERB = (
    "{who} VERBs {what}",
    "every day {who} VERBs {what}",
    "{what} is what {who} VERBs",
    "{who} likes to VERB {what}",
    "it was {what} that {who} VERBed",
)
NOUN = (
    "{whose} NOUN is {what}",
    "{who} has a NOUN, which is {what}",
    "{what} is {whose} NOUN",
    "{who} chose {what} as {his} NOUN",
    "for {whom}, the NOUN is {what}",
)
VALUES = (
    lambda names: names.word(),
    lambda names: f"the {names.rng.choice(COLOURS)} {names.word()}",
    Names.town,
    number(2, 99),
    *(ANIMALS, COLOURS, DAYS, FOODS, JOBS),
)


class PretrainingNames(Names):
    """Names of the train split, some of them spelled at random, or similar to another one of the passage."""

    def __init__(self, rng: Random):
        super().__init__(rng, "train")

    def invent(self, *parts: list[str]) -> Word:
        kind = self.rng.random()
        if kind < SPELLED:
            return self._new(lambda: self._spelled().capitalize())
        if kind < SPELLED + SIMILAR and self.used:
            other = self.rng.choice(sorted(self.used))
            return self._new(lambda: other[: max(2, len(other) - 3)] + self._syllable())
        return super().invent(*parts)

    def word(self) -> Word:
        """An invented word in lower case."""
        return self._new(self._spelled)

    def _new(self, make: Callable[[], str]) -> Word:
        while True:
            name = make()
            if name not in self.used and self.split_of(name) == self.split:
                self.used.add(name)
                return Word(name)

    def _spelled(self) -> str:
        return "".join(self._syllable() for _ in range(self.rng.randint(1, 3)))

    def _syllable(self) -> str:
        return self.rng.choice(ONSETS) + self.rng.choice(VOWELS) + self.rng.choice(CODAS)


def story(rng: Random, shape: tuple[int, int]) -> make_qa.Story:
    """A passage for gaps before it, see `gaps_in_front`: every fact is stated once."""
    names = PretrainingNames(rng)
    topic, kind = None, rng.random()
    if kind < INVENTED:
        topic = make_qa.person, invented_facts(names)
    elif kind < INVENTED + ENGLISH:
        topic = english_words.subject, english_words.facts(rng)
    return make_qa.story(rng, shape=shape, restated=0.0, names=names, topic=topic)


def invented_facts(names: PretrainingNames) -> tuple[Fact, ...]:
    """Three kinds of facts, each with a new verb or noun."""
    facts = []
    for values in names.rng.sample(VALUES, 3):
        placeholder, patterns = names.rng.choice([("VERB", VERB), ("NOUN", NOUN)])
        word = names.word()
        sentences = tuple(pattern.replace(placeholder, word) for pattern in patterns)
        facts.append(Fact({"what": values}, sentences, {"what": (), "who": ()}))
    return tuple(facts)
