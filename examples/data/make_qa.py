"""Generate a reading-comprehension set about invented people, towns, ships, things and fairs.

    python examples/data/make_qa.py      # writes examples/data/qa/{train,valid,test}.json, in SQuAD's layout

Each passage states the same kinds of facts about two or three subjects, so a question must be matched to the
right one, and half of the facts are stated twice, in different words. Every passage has new names of people,
towns, ships and pets, and the splits have no names in common (see `Names`). So a model can answer questions
about the test passages only by reading them: it has seen none of their names.

The sentences and questions are in qa_language.py. `story` and `ask` can be imported to stream passages for
training (see weights/pretrain_t5_mini.py).
"""

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from qa_language import (
    ASIDES,
    FEMALE_ENDS,
    GATHERING_FACTS,
    GATHERINGS,
    KIN,
    KINSHIP,
    MALE_ENDS,
    MATERIALS,
    OPENINGS,
    PERSON_FACTS,
    REMINDERS,
    SHIP_FACTS,
    THING_FACTS,
    THINGS,
    TOWN_FACTS,
    Fact,
    Names,
    Word,
)

SPLITS = {"train": 8000, "valid": 400, "test": 1000}  # questions
SEED = 1  # the hyperparameters of weights/t5-mini were selected on the passages of seed 0
QUESTIONS_PER_PASSAGE = 5
PASSAGE_SHAPES = ((2, 2), (2, 2), (2, 3), (3, 1))  # subjects and kinds of facts of the passages in the files


# --------------------------------------------------------------------------------------------------- subjects


@dataclass(frozen=True)
class Subject:
    name: Word
    he: str
    his: str
    him: str

    def named(self) -> dict[str, str]:
        return {"who": self.name, "whose": f"{self.name:s}", "whom": self.name} | self._pronouns()

    def again(self) -> dict[str, str]:
        return {"who": self.he, "whose": self.his, "whom": self.him} | self._pronouns()

    def described(self, description: str) -> dict[str, str]:
        return {"who": description, "whose": f"{description}'s", "whom": description} | self._pronouns()

    def _pronouns(self) -> dict[str, str]:
        return {"he": self.he, "his": self.his, "him": self.him}


def woman(names: Names) -> Subject:
    return Subject(names.person(FEMALE_ENDS), "she", "her", "her")


def man(names: Names) -> Subject:
    return Subject(names.person(MALE_ENDS), "he", "his", "him")


def person(names: Names) -> Subject:
    return names.rng.choice([woman, man])(names)


def town(names: Names) -> Subject:
    return Subject(names.town(), "it", "its", "it")


def ship(names: Names) -> Subject:
    return Subject(Word(f"the {names.ship()}"), "it", "its", "it")


def thing(names: Names) -> Subject:
    return Subject(Word(f"the {names.rng.choice(MATERIALS)} {names.rng.choice(THINGS)}"), "it", "its", "it")


def gathering(names: Names) -> Subject:
    return Subject(Word(f"the {names.town()} {names.rng.choice(GATHERINGS)}"), "it", "its", "it")


Topic = tuple[Callable[[Names], Subject], tuple[Fact, ...]]  # constructor of subjects, kinds of facts

TOPICS = (  # topics of passages, each after its weight
    (10, person, PERSON_FACTS),
    (4, town, TOWN_FACTS),
    (3, ship, SHIP_FACTS),
    (2, thing, THING_FACTS),
    (2, gathering, GATHERING_FACTS),
)


# ---------------------------------------------------------------------------------------------------- a story


@dataclass(frozen=True)
class Statement:
    """One fact of one subject, with its values filled in."""

    subject: Subject
    fact: Fact
    values: dict[str, Word]

    def say(self, pattern: str, mention: Mapping[str, str]) -> str:
        return pattern.format(**mention, **self.values)


SHAPES = ((2, 2), (2, 3), (3, 2))  # default numbers of subjects and kinds of facts


@dataclass(frozen=True)
class Story:
    context: str
    statements: list[Statement]
    descriptions: dict[str, list[str]]  # name of a subject -> descriptions of it: "the baker"

    def descriptions_for(self, statement: Statement) -> list[str]:
        """Descriptions of the statement's subject that do not contain one of its values."""
        values = statement.values.values()
        of_subject = self.descriptions.get(statement.subject.name, [])
        return [text for text in of_subject if not any(value in text for value in values)]


def story(
    rng: Random,
    split: str = "train",
    *,
    shape: tuple[int, int] | None = None,
    restated: float = 0.5,
    names: Names | None = None,
    topic: Topic | None = None,
) -> Story:
    """A passage with `shape` = (subjects, kinds of facts), by default one of SHAPES.

    A fraction `restated` of the facts is stated twice. `names` replaces the split's names, `topic` the random
    choice of one of TOPICS.
    """
    names = names or Names(rng, split)
    new_subject, facts = topic or rng.choices(TOPICS, [weight for weight, *_ in TOPICS])[0][1:]
    subjects, kind_count = shape or rng.choice(SHAPES)
    cast = _different(lambda: new_subject(names), subjects, key=lambda subject: subject.name)
    kinds = _kinds(rng, facts, kind_count)

    by_kind = [
        [
            Statement(subject, fact, values)
            for subject, values in zip(cast, _values(fact, names, subjects), strict=True)
        ]
        for fact in kinds
    ]
    kin = _kinship(rng, cast) if new_subject is person and rng.random() < 0.4 else None
    statements = _in_some_order(rng, by_kind)
    context = _tell(rng, names, cast, ([kin] if kin else []) + statements, restated)
    return Story(context, ([kin] if kin else []) + statements, _descriptions(statements, kin))


def _kinds(rng: Random, facts: tuple[Fact, ...], count: int) -> list[Fact]:
    """`count` kinds of facts, but not both age and year of birth, which would have to agree."""
    kinds = rng.sample(facts, count)
    slots = {slot for fact in kinds for slot in fact.values}
    return _kinds(rng, facts, count) if {"age", "year"} <= slots else kinds


def _different(make: Callable[[], Subject], count: int, key: Callable[[Subject], str]) -> list[Subject]:
    made: dict[str, Subject] = {}
    while len(made) < count:
        subject = make()
        made.setdefault(key(subject), subject)
    return list(made.values())


def _values(fact: Fact, names: Names, count: int) -> list[dict[str, Word]]:
    """Values of a fact for `count` subjects, all different: a question must not have two answers."""
    columns = {}
    for slot, values in fact.values.items():
        column: dict[str, None] = {}
        while len(column) < count:
            column[values(names) if callable(values) else names.rng.choice(values)] = None
        columns[slot] = [Word(value) for value in column]
    return [{slot: column[row] for slot, column in columns.items()} for row in range(count)]


def _kinship(rng: Random, cast: list[Subject]) -> Statement:
    subject, other = rng.sample(cast, 2)
    female, male = rng.choice(KIN)
    kin = female if subject.he == "she" else male
    values = {"name": subject.name, "kin": Word(kin), "other": other.name, "other_his": Word(other.his)}
    return Statement(subject, KINSHIP, values)


def _in_some_order(rng: Random, by_kind: list[list[Statement]]) -> list[Statement]:
    """Order by subject, by kind of fact, or at random."""
    order = rng.random()
    if order < 0.5:
        return [statement for of_subject in zip(*by_kind, strict=True) for statement in of_subject]
    flat = [statement for of_kind in by_kind for statement in of_kind]
    return flat if order < 0.75 else rng.sample(flat, len(flat))


def _descriptions(statements: list[Statement], kin: Statement | None) -> dict[str, list[str]]:
    descriptions: dict[str, list[str]] = {}
    if kin:
        descriptions[kin.subject.name] = [f"{kin.values['other']:s} {kin.values['kin']}"]
    for statement in statements:
        if "job" in statement.values:
            descriptions.setdefault(statement.subject.name, []).append(f"the {statement.values['job']}")
    return descriptions


def _tell(
    rng: Random, names: Names, cast: list[Subject], statements: list[Statement], restated: float
) -> str:
    """Write the statements as sentences, and restate some of them at the end with another pattern."""
    patterns = [rng.sample(statement.fact.sentences, 2) for statement in statements]
    again = rng.sample(range(len(statements)), round(restated * len(statements)))
    planned = [(statement, first, "") for statement, (first, _) in zip(statements, patterns, strict=True)]
    planned += [
        (statements[i], patterns[i][1], rng.choice(REMINDERS) if rng.random() < 0.3 else "") for i in again
    ]

    sentences: list[str] = []
    if rng.random() < 0.3:
        everyone = [subject.name for subject in rng.sample(cast, len(cast))]
        sentences.append(rng.choice(OPENINGS).format(all=", ".join(everyone[:-1]) + " and " + everyone[-1]))
    before: Statement | None = None
    for statement, pattern, reminder in planned:
        same_subject = before is not None and before.subject is statement.subject
        same_fact = before is not None and before.fact is statement.fact
        # A pronoun is unambiguous only after a sentence about the same subject and no other person.
        clear = same_subject and not names.people & {*before.values.values()} and "of {whom}" not in pattern
        link = ", and " if clear and not same_fact else ", while " if same_fact and not same_subject else ""
        joined = link and not reminder and rng.random() < 0.2
        short = clear and (joined or rng.random() < 0.6)
        mention = statement.subject.again() if short else statement.subject.named()
        sentence = reminder + statement.say(pattern, mention)
        if joined:
            sentences[-1] += link + sentence
        else:
            sentences.append(sentence)
        before = statement
        if rng.random() < 0.05:
            sentences.append(rng.choice(ASIDES))
            before = None
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)


# -------------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    answer_start: int


def ask(rng: Random, passage: Story, count: int, two_steps: float = 0.3) -> list[Question]:
    """`count` different questions about a story.

    If a subject has a description ("the baker", "Ann's brother"), a fraction `two_steps` of the questions use
    it instead of the name, so that the answer requires two sentences.
    """
    questions: dict[str, Question] = {}
    while len(questions) < count:
        statement = rng.choice(passage.statements)
        slot = rng.choice(
            [slot for slot in statement.fact.questions for _ in range(1 if slot == "who" else 2)]
        )
        pattern = rng.choice(statement.fact.questions[slot])
        mention = statement.subject.named()
        descriptions = passage.descriptions_for(statement)
        if descriptions and slot != "who" and rng.random() < two_steps:
            mention = statement.subject.described(rng.choice(descriptions))
        text = statement.say(pattern, mention)
        answer = str(statement.subject.name if slot == "who" else statement.values[slot])
        found = re.search(rf"\b{re.escape(answer)}\b", passage.context, re.IGNORECASE)
        start, end = found.span()
        questions[text] = Question(text[0].upper() + text[1:], passage.context[start:end], start)
    return list(questions.values())


# ------------------------------------------------------------------------------------------------------ files


def paragraphs(split: str, questions: int, seed: int) -> Iterator[dict]:
    """Paragraphs in SQuAD 1.1 layout, a pure function of the arguments."""
    rng = Random(f"{split} {seed}")
    for number in range(questions // QUESTIONS_PER_PASSAGE):
        passage = story(rng, split, shape=rng.choice(PASSAGE_SHAPES))
        yield {
            "context": passage.context,
            "qas": [
                {
                    "id": f"{split}-{number}-{i}",
                    "question": question.text,
                    "answers": [{"text": question.answer, "answer_start": question.answer_start}],
                }
                for i, question in enumerate(ask(rng, passage, QUESTIONS_PER_PASSAGE))
            ],
        }


def squad(split: str, questions: int, seed: int) -> str:
    """The file of a split: JSON with one paragraph per line, for readable diffs."""
    lines = ",\n".join(json.dumps(paragraph) for paragraph in paragraphs(split, questions, seed))
    return f'{{"version": "1.1", "data": [{{"title": "{split}", "paragraphs": [\n{lines}\n]}}]}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "qa", help="directory of the three files"
    )
    parser.add_argument("--seed", type=int, default=SEED, help="seed of the passages")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for split, questions in SPLITS.items():
        path = arguments.output / f"{split}.json"
        path.write_text(squad(split, questions, arguments.seed), encoding="utf-8")
        print(f"{path}: {questions} questions")


if __name__ == "__main__":
    main()
