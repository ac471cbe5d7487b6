"""The text that t5-mini learns from: what is removed from it, and what can be inferred."""

import re
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftcore import load_tokenizer

WEIGHTS = Path(__file__).parents[2] / "weights"
sys.path.insert(0, str(WEIGHTS))

import pretrain_t5_mini as script  # noqa: E402  (not in a package)
import qa_language  # noqa: E402

english_words = script.invented_words.english_words
TOKENIZER = load_tokenizer(script.DIRECTORY)
SENTINELS = {TOKENIZER.sentinel_id(number) for number in range(100)}
SECOND = TOKENIZER.sentinel_id(1)
SENTINEL = re.compile(r"<extra_id_\d+>")

seeds = st.integers(0, 10**9)
kinds = st.sampled_from(["generated", "invented", "english"])


def a_story(kind: str, rng: Random) -> script.make_qa.Story:
    shape = rng.choice(script.LONG)
    if kind == "invented":
        return script.invented_words.story(rng, shape)
    if kind == "english":
        topic = english_words.subject, english_words.facts(rng)
        return script.make_qa.story(rng, shape=shape, restated=0.0, topic=topic)
    return script.make_qa.story(rng, shape=shape, restated=0.0)


def removed(ids: list[int], mask: list[bool]) -> list[str]:
    """The text of each gap."""
    _, target = script.cut_spans(
        ids, np.array(mask), sentinel_id=TOKENIZER.sentinel_id, eos_id=TOKENIZER.eos_id
    )
    text = TOKENIZER.decode(target[:-1], skip_special_tokens=False)
    return [gap.strip() for gap in SENTINEL.split(text)[1:]]


@settings(max_examples=200, deadline=None)
@given(seeds, kinds, st.sampled_from([0.0, 0.5, 1.0]))
def test_two_gaps_in_front_can_be_read_in_the_passage(seed, kind, shuffled):
    rng = Random(seed)
    story = a_story(kind, rng)
    ids, mask = script.gaps_in_front(story, TOKENIZER, rng, shuffled=shuffled)
    gaps = removed(ids, mask)
    assert len(gaps) == 2
    assert all(gap.lower() in story.context.lower() for gap in gaps)
    passage = TOKENIZER.encode(story.context)[:-1]
    assert ids[-len(passage) :] == passage and not any(mask[-len(passage) :])


@settings(max_examples=100, deadline=None)
@given(seeds, kinds)
def test_a_sentence_with_a_gap_is_one_of_the_fact(seed, kind):
    rng = Random(seed)
    story = a_story(kind, rng)
    statement = rng.choice(story.statements)
    before, gap, after = script.sentence_with_gap(story, statement, rng)
    mentions = [
        statement.subject.named(),
        *map(statement.subject.described, story.descriptions_for(statement)),
    ]
    sentences = [statement.say(p, mention) + "." for p in statement.fact.sentences for mention in mentions]
    assert (before + gap + after).lower() in [sentence.lower() for sentence in sentences]
    assert gap in {statement.subject.name, *statement.values.values()}
    assert not re.search(r"\w$", before) and not re.match(r"\w", after)  # "red" is not found in "Fernafred"


@given(st.text("ab ."), st.text("cd ", min_size=1).map("{}.".format), seeds)
def test_a_shuffled_sentence_has_the_same_words(before, after, seed):
    shuffled = script.shuffled_around_gap(before, after, Random(seed))
    assert sorted(" ".join(shuffled).split()) == sorted(f"{before} {after}".split())
    assert shuffled[1]


@pytest.mark.parametrize("stage", script.STAGES, ids=lambda stage: f"{stage.until}")
def test_sources_and_targets_of_a_stage(stage):
    rng, noise = Random(0), np.random.default_rng(0)
    pairs = [script.corrupt(stage, TOKENIZER, rng, noise) for _ in range(200)]
    marks = [
        (SENTINELS.intersection(source), [token for token in target if token in SENTINELS])
        for source, target in pairs
    ]
    unmarked = sum(in_source == set() and in_target == [SECOND] for in_source, in_target in marks)
    marked = sum(len(in_target) > 0 and set(in_target) == in_source for in_source, in_target in marks)
    assert marked + unmarked == len(pairs)
    assert 90 < unmarked < 150 if stage.spans == "loosely in front" else unmarked == 0
    texts = [TOKENIZER.decode(source) for source, _ in pairs]
    assert not any("?" in text or "question:" in text for text in texts)


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_all_names_are_of_the_train_split(seed):
    names = script.invented_words.PretrainingNames(Random(seed))
    for make in (names.person, names.town, names.ship, names.pet, names.river, names.word):
        assert names.split_of(make()) == "train"


def test_some_names_are_not_of_the_generator():
    starts, middles = "|".join(qa_language.STARTS), "|".join(qa_language.MIDDLES)
    ends = "|".join(qa_language.FEMALE_ENDS + qa_language.MALE_ENDS)
    of_generator = re.compile(f"(?:{starts})(?:{middles})(?:{ends})")
    names = [script.invented_words.PretrainingNames(Random(seed)).person() for seed in range(1000)]
    new = sum(not of_generator.fullmatch(name) for name in names)
    assert 120 < new < 280


def test_the_rows_of_two_processes_are_those_of_one(monkeypatch):
    monkeypatch.setattr(script, "STAGES", script.STAGES[:1])
    (_, whole) = next(script.batches(TOKENIZER, 0))
    halves = []
    for rank in range(2):
        monkeypatch.setattr(script, "shard", lambda rows, rank=rank: rows[rank::2])
        (_, batch) = next(script.batches(TOKENIZER, 0))
        halves.append([[t for t in row if t] for row in batch["input_ids"].tolist()])
    together = [row for pair in zip(*halves, strict=True) for row in pair]
    assert together == [[t for t in row if t] for row in whole["input_ids"].tolist()]


def test_forms_of_regular_verbs():
    assert english_words.inflected("polish") == ("polish", "polishes", "polished", "polished")
    assert english_words.inflected("carry") == ("carry", "carries", "carried", "carried")
    assert english_words.inflected("play") == ("play", "plays", "played", "played")
    assert english_words.inflected("bake") == ("bake", "bakes", "baked", "baked")
    assert all(len(forms) == 4 for forms in english_words.VERBS)


def test_plurals():
    assert [english_words.plural(noun) for noun in ("bench", "toy", "mouse")] == ["benches", "toys", "mice"]
