"""Generate an emotion classification set with six labels, in lines such as `i feel calm and cheerful;joy`.

    python examples/data/make_emotion.py       # writes examples/data/emotion/{train,valid,test}.txt

The lines have the style of published emotion data sets: first person, lower case, no punctuation (`didnt`,
`im`). A line is a template ("this morning i felt ... because ...") filled with an adjective, a cause and a
setting. Adjectives and causes depend on the label, templates and settings do not. All lines of all splits are
different.
"""

import argparse
from pathlib import Path
from random import Random

SPLITS = {"train": 4000, "valid": 500, "test": 500}  # lines


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


ADJECTIVES = {
    "sadness": words(
        "sad lonely unhappy gloomy hopeless miserable empty heartbroken disappointed homesick hurt low lost "
        "rejected tearful tired unloved unwanted useless weary worthless forgotten ashamed discouraged "
        "broken numb sorry guilty"
    ),
    "joy": words(
        "happy joyful cheerful glad content delighted proud hopeful excited lively merry pleased relaxed "
        "calm festive thankful carefree confident playful radiant satisfied brave eager fresh jolly lucky "
        "peaceful welcome"
    ),
    "love": words(
        "loving tender fond caring affectionate devoted romantic warm passionate faithful adored beloved "
        "cherished gentle sympathetic loyal generous compassionate longing treasured"
    ),
    "anger": words(
        "angry annoyed furious bitter irritated cross mad offended outraged resentful grumpy frustrated "
        "insulted jealous hostile impatient grouchy spiteful enraged cheated provoked rude stubborn violent"
    ),
    "fear": words(
        "afraid scared nervous anxious frightened worried uneasy terrified shaky timid helpless threatened "
        "insecure panicky restless uncertain vulnerable alarmed tense hesitant shy doubtful unsafe paranoid"
    ),
    "surprise": words(
        "surprised amazed astonished stunned shocked startled curious speechless impressed dazed puzzled "
        "amused overwhelmed baffled dumbfounded bewildered"
    ),
}

CAUSES = {
    "sadness": phrases(
        "my best friend moved away, nobody called me on my birthday, my old dog died last night, i lost my "
        "job, the summer is already over, i failed the exam again, no one wants to sit with me, my letter "
        "was never answered, i miss my grandmother so much, our team lost the last match, we had to sell the "
        "house, she left without a word, he forgot my name, all my flowers died, i spend every evening "
        "alone, the little shop has closed for good, i said something unkind to my mother, my plans came to "
        "nothing"
    ),
    "joy": phrases(
        "the sun is shining, i passed the exam, we are going on holiday tomorrow, my garden is full of "
        "roses, my team won the match, i finished the long book, the baby laughed at me, we danced all "
        "night, my soup turned out well, i got the job, the snow is perfect for skiing, the children sang "
        "for me, i slept like a stone, my painting was chosen for the show, all my friends came to dinner, i "
        "can finally swim, the long week is over, my bicycle is as good as new"
    ),
    "love": phrases(
        "she held my hand all evening, he wrote me a long letter, my daughter fell asleep in my arms, we "
        "have been married for thirty years, my cat curled up on my lap, he always waits for me at the "
        "station, she kept every picture i drew, they took me in like a son, my little brother hugged me, he "
        "brought me soup when i was ill, she knows me better than i do, we walked home arm in arm, my "
        "grandfather told me about his first kiss, she smiled at me across the room, he still calls me his "
        "darling"
    ),
    "anger": phrases(
        "someone scratched my car, the train was late again, my brother broke my guitar, they lied to me, "
        "the neighbours shouted all night, he took my seat and laughed, i had to wait for three hours, she "
        "read my diary, nobody ever does the dishes, they cheated in the game, my boss blamed me for his "
        "mistake, he never listens to me, someone stole my umbrella, they cut down the old tree, she slammed "
        "the door in my face, the shop refused to give my money back, he keeps making fun of my voice"
    ),
    "fear": phrases(
        "i heard steps behind me, the exam is tomorrow, the storm is coming closer, i have to speak to a "
        "full hall, the doctor wants to see me again, the dog would not stop growling, the lights went out "
        "in the cellar, i cannot find my way home, the ice cracked under my feet, somebody knocked at "
        "midnight, i may lose my place at school, the plane shook so badly, my son has not come home yet, a "
        "stranger stood at the gate, the letter came from the court, i dreamt of the deep water again"
    ),
    "surprise": phrases(
        "my brother came home a year early, the old clock began to strike again, i found a letter in my "
        "coat, a deer stood in my kitchen, i won the first prize, the quiet boy can sing like that, they had "
        "prepared a party for me, it snowed in june, my teacher knew my grandmother, the parrot said my "
        "name, she cut off all her hair, i met my neighbour on the other side of the world, the magician "
        "pulled a kite from my hat, the plain box was full of coins, the whole town turned up to help"
    ),
}

SETTINGS = phrases(
    "today, this morning, at work, at school, at home, on the way home, in the evening, on mondays, in this "
    "town, after dinner, in my new room, in the garden, on the train, after all these years, in front of my "
    "friends, at the station, during lunch, by the river, on my birthday"
)
PRESENT = phrases(
    "right now, these days, at the moment, lately, when i think of it, when i wake up, when i look back, "
    "most of the time"
)
DEGREES = words("very so rather quite really truly terribly deeply pretty incredibly somewhat unusually")

# {adj}: an adjective, {more}: another one of the same label, {cause}: a cause, {very}: a degree,
# {when}: a setting, {now}: a setting in past or present.
TEMPLATES = (
    "i feel {adj}",
    "i feel {very} {adj}",
    "i feel {adj} and {more}",
    "i am feeling {very} {adj} {now}",
    "im feeling {adj} because {cause}",
    "i feel {very} {adj} because {cause}",
    "i felt {adj} {when} because {cause}",
    "i was feeling {adj} and {more} {when}",
    "i feel {adj} {now}",
    "i still feel {adj} when i remember how {cause}",
    "i cant help feeling {adj} since {cause}",
    "i started to feel {adj} when i saw that {cause}",
    "i have been feeling {very} {adj} since {cause}",
    "i know that i should not feel {adj} but {cause}",
    "i do not know why i feel {very} {adj} {now}",
    "i woke up feeling {adj} and {more}",
    "i went to bed feeling {very} {adj} because {cause}",
    "i told my friend that i feel {adj} {now}",
    "i wrote in my diary that i felt {adj} and {more} because {cause}",
    "i feel {adj} every time i hear that {cause}",
    "i feel a little {adj} {now}",
    "i feel like a {adj} child because {cause}",
    "i guess i just feel {adj} {now}",
    "i remember feeling {very} {adj} {when}",
    "i came home and felt {adj} because {cause}",
    "i would be lying if i said that i did not feel {adj} {when}",
    "i never thought i would feel so {adj} {when}",
    "ive been feeling {adj} {now} because {cause}",
    "i didnt sleep well because i felt {very} {adj}",
    "i didnt want to feel {adj} but {cause}",
    "im still feeling {adj} and {more} {now}",
    "{cause} and i feel {very} {adj}",
    "{cause} so i feel {adj} {now}",
    "{now} i feel {adj} because {cause}",
    "{when} i felt {adj} and {more}",
    "when {cause} i felt {very} {adj}",
    "my sister asks why i feel {adj} {now} and i say that {cause}",
    "nobody knows how {adj} i feel {now}",
    "it is strange to feel {adj} {when} but {cause}",
    "everyone can see that i feel {adj} because {cause}",
)


def line(rng: Random) -> str:
    """One random line, `text;label`."""
    label = rng.choice(list(ADJECTIVES))
    adjective, another = rng.sample(ADJECTIVES[label], 2)
    text = rng.choice(TEMPLATES).format(
        adj=adjective,
        more=another,
        cause=rng.choice(CAUSES[label]),
        when=rng.choice(SETTINGS),
        now=rng.choice(SETTINGS + PRESENT),
        very=rng.choice(DEGREES),
    )
    return f"{text};{label}"


def lines(count: int, seed: int) -> list[str]:
    """`count` different lines, a pure function of the arguments."""
    rng = Random(f"emotion {seed}")
    seen: dict[str, None] = {}
    while len(seen) < count:
        seen[line(rng)] = None
    return list(seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).parent / "emotion", help="directory of the files"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the lines")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rest = lines(sum(SPLITS.values()), arguments.seed)
    for split, count in SPLITS.items():
        chosen, rest = rest[:count], rest[count:]
        path = arguments.output / f"{split}.txt"
        path.write_text("\n".join(chosen) + "\n", encoding="utf-8")
        print(f"{path}: {count} lines")


if __name__ == "__main__":
    main()
