"""The data generators are deterministic, and the splits have no names or lines in common."""

import json
import re
import sys
from pathlib import Path
from random import Random

import pytest

DATA = Path(__file__).parents[2] / "examples" / "data"
sys.path.insert(0, str(DATA))

import make_emotion  # noqa: E402  (not in a package)
import make_qa  # noqa: E402
import qa_language  # noqa: E402


def paragraphs(split: str) -> list[dict]:
    content = json.loads((DATA / "qa" / f"{split}.json").read_text(encoding="utf-8"))
    return [paragraph for article in content["data"] for paragraph in article["paragraphs"]]


def invented_names(split: str) -> set[str]:
    """All words of the passages that consist of the generator's syllables."""
    starts = "|".join(qa_language.STARTS)
    middles = "|".join({*qa_language.MIDDLES, *qa_language.TOWN_LINKS})
    person_ends = qa_language.FEMALE_ENDS + qa_language.MALE_ENDS
    place_ends = qa_language.TOWN_ENDS + qa_language.RIVER_ENDS
    ends = "|".join({*person_ends, *place_ends, *qa_language.PET_ENDS, *qa_language.SHIP_ENDS})
    name = re.compile(rf"\b(?:{starts})(?:{middles})(?:{ends})\b")
    return {found for paragraph in paragraphs(split) for found in name.findall(paragraph["context"])}


@pytest.mark.parametrize("split", make_qa.SPLITS)
def test_qa_files_equal_the_output_of_the_generator(split):
    written = (DATA / "qa" / f"{split}.json").read_text(encoding="utf-8")
    assert written == make_qa.squad(split, make_qa.SPLITS[split], make_qa.SEED)


@pytest.mark.parametrize("split", make_qa.SPLITS)
def test_qa_answers_are_at_answer_start(split):
    questions = 0
    for paragraph in paragraphs(split):
        assert len({qa["question"] for qa in paragraph["qas"]}) == len(paragraph["qas"])
        for qa in paragraph["qas"]:
            (answer,) = qa["answers"]
            start = answer["answer_start"]
            assert answer["text"]
            assert paragraph["context"][start : start + len(answer["text"])] == answer["text"]
            questions += 1
    assert questions == make_qa.SPLITS[split]


def test_answers_to_the_passages_by_hand_are_at_answer_start():
    found = paragraphs("by_hand")
    assert len(found) == 30
    for paragraph in found:
        (qa,) = paragraph["qas"]
        for answer in qa["answers"]:
            start = answer["answer_start"]
            assert paragraph["context"][start : start + len(answer["text"])] == answer["text"] != ""


def test_qa_splits_have_no_name_or_passage_in_common():
    train, valid, test = (invented_names(split) for split in ("train", "valid", "test"))
    assert len(train) > 3000 and len(valid) > 150 and len(test) > 400
    assert not train & valid and not train & test and not valid & test
    contexts = [paragraph["context"] for split in make_qa.SPLITS for paragraph in paragraphs(split)]
    assert len(set(contexts)) == len(contexts)


def test_every_pattern_can_be_filled_in():
    rng = Random(0)
    for _, new_subject, facts in make_qa.TOPICS:
        names = make_qa.Names(rng, "train")
        subject = new_subject(names)
        for fact in facts:
            (values,) = make_qa._values(fact, names, 1)
            statement = make_qa.Statement(subject, fact, values)
            questions = [pattern for patterns in fact.questions.values() for pattern in patterns]
            for pattern in (*fact.sentences, *questions):
                for mention in (subject.named(), subject.again()):
                    assert not re.search(r"[{}]|  ", statement.say(pattern, mention))
            assert len(set(fact.sentences)) == len(fact.sentences) >= 4
            assert set(fact.questions) <= {"who", *fact.values}


def test_a_question_has_one_answer():
    """No two subjects of a passage have the same value."""
    rng = Random(1)
    for _ in range(300):
        story = make_qa.story(rng)
        for fact in {id(s.fact): s.fact for s in story.statements}.values():
            for slot in fact.values:
                values = [statement.values[slot] for statement in story.statements if statement.fact is fact]
                assert len(set(values)) == len(values)


def test_stories_are_a_function_of_the_seed():
    assert make_qa.story(Random(3)) == make_qa.story(Random(3))
    assert make_qa.story(Random(3)).context != make_qa.story(Random(4)).context


def test_restated_facts_make_a_passage_longer():
    def sentences(share: float) -> int:
        rng = Random(5)
        return sum(make_qa.story(rng, shape=(2, 3), restated=share).context.count(".") for _ in range(50))

    assert sentences(0.0) < sentences(0.5) < sentences(1.0)


def test_seams_mark_the_parts_of_names_and_nothing_else():
    plain, rng = make_qa.story(Random(7)).context, Random(7)
    seamed = make_qa.story(rng, names=make_qa.Names(rng, "train", "|")).context
    assert "|" in seamed
    assert seamed.replace("|", "") == plain


def test_articles_and_genitives():
    assert (
        f"{make_qa.Word('actor'):a}, {make_qa.Word('baker'):a}, {make_qa.Word('Ann'):s}"
        == "an actor, a baker, Ann's"
    )


def test_emotion_files_equal_the_output_of_the_generator():
    lines = make_emotion.lines(sum(make_emotion.SPLITS.values()), seed=0)
    written = [
        (DATA / "emotion" / f"{split}.txt").read_text(encoding="utf-8") for split in make_emotion.SPLITS
    ]
    assert "".join(written).splitlines() == lines


def test_emotion_lines_are_lower_case_and_never_repeat():
    lines = [
        line
        for split in make_emotion.SPLITS
        for line in (DATA / "emotion" / f"{split}.txt").open(encoding="utf-8")
    ]
    texts = [line.rstrip("\n").split(";")[0] for line in lines]
    assert len(set(texts)) == len(texts) == sum(make_emotion.SPLITS.values())
    for line in lines:
        assert re.fullmatch(r"[a-z ]+;(sadness|joy|love|anger|fear|surprise)\n", line)
        assert "  " not in line


@pytest.mark.parametrize("generator", [make_qa, make_emotion])
def test_commands_write_their_files(generator, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make", "--output", str(tmp_path / "set"), "--seed", "1"])
    generator.main()
    assert {path.stem for path in (tmp_path / "set").iterdir()} == {"train", "valid", "test"}
    assert len(capsys.readouterr().out.splitlines()) == 3
