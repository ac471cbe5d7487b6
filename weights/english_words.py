"""Facts with ordinary English words, for the last stage of pretrain_t5_mini.py.

The generator states some sixty kinds of facts, each in its own sentences. Here a kind of fact is put
together from random verbs and nouns, and may have a place and a time: "In the evening the tall doctor washed
nine plates behind the church". So what a sentence says must be read from its words and their order.
"""

from random import Random

import make_qa
from qa_language import (
    ANIMALS,
    COLOURS,
    DRINKS,
    FEMALE_ENDS,
    FOODS,
    JOBS,
    MALE_ENDS,
    PLACES,
    WARES,
    Fact,
    Names,
    Values,
    Word,
    number,
    phrases,
    words,
)


def inflected(verb: str) -> tuple[str, str, str, str]:
    """The forms of a regular verb: polish, polishes, polished, polished."""
    stem = verb[:-1] + "i" if verb.endswith("y") and verb[-2] not in "aeo" else verb
    third = stem + ("es" if stem.endswith(("s", "x", "ch", "sh", "i")) else "s")
    past = stem + ("d" if stem.endswith("e") else "ed")
    return verb, third, past, past


REGULAR = words(
    "admire answer ask attack bake bless boil borrow bury carry chase clean collect cook copy count cover "
    "cross deliver describe destroy discover dry dust empty examine explain fear fill finish fix follow "
    "fold gather guard help hunt imagine improve inspect invent invite iron join kick learn lift like load "
    "lock love mark measure mend mention miss move need notice observe offer open order own paint pick "
    "place plant play polish post praise prepare press protect pull push raise receive recommend remember "
    "remove rent repair rescue roast sail save seal search serve shake share sketch smell sort store study "
    "taste thank touch trade train trust use visit want warm watch water weigh welcome wipe"
)
IRREGULAR = phrases(
    "bring brings brought brought, break breaks broke broken, build builds built built, buy buys bought "
    "bought, catch catches caught caught, choose chooses chose chosen, draw draws drew drawn, drive drives "
    "drove driven, eat eats ate eaten, feed feeds fed fed, find finds found found, forget forgets forgot "
    "forgotten, give gives gave given, hear hears heard heard, hide hides hid hidden, hold holds held held, "
    "keep keeps kept kept, know knows knew known, lead leads led led, leave leaves left left, lose loses "
    "lost lost, make makes made made, meet meets met met, pay pays paid paid, read reads read read, ride "
    "rides rode ridden, see sees saw seen, sell sells sold sold, send sends sent sent, sew sews sewed sewn, "
    "show shows showed shown, sing sings sang sung, steal steals stole stolen, sweep sweeps swept swept, "
    "take takes took taken, teach teaches taught taught, tell tells told told, throw throws threw thrown, "
    "wear wears wore worn, win wins won won, write writes wrote written"
)
VERBS = [inflected(verb) for verb in REGULAR] + [tuple(verb.split()) for verb in IRREGULAR]
GIVING = [("gave", "got"), ("lent", "borrowed"), ("sent", "received"), ("sold", "bought"), ("showed", "saw")]
INTRANSITIVE = phrases(
    "arrives arrived, camps camped, dances danced, falls fell, laughs laughed, lies lay, lives lived, rests "
    "rested, runs ran, shouts shouted, sits sat, sleeps slept, stands stood, stays stayed, swims swam, "
    "trains trained, waits waited, walks walked, works worked"
)
ADJECTIVES = words(
    "angry bitter brave bright broken calm cheap clever cold cruel damp dark deep dirty dusty early empty "
    "famous fat fine fresh gentle happy heavy hungry kind large lazy light little lonely long loud lucky "
    "modern narrow new noisy old plain polite poor proud quick quiet rich round rude sad sharp short shy "
    "silent simple slow small smooth soft strange strong sweet tall thick thin tiny tired warm weak wet "
    "wide wild wise wooden young"
)
NOUNS = words(
    "arrow bag ball bench blanket bottle branch brick bucket button camera chain coin curtain desk drum "
    "envelope fence flag flower fork guest hat house island jacket journey joke ladder letter machine medal "
    "message nail necklace needle nest newspaper onion orange oven parcel pen photo picture pillow plate "
    "poem pot prize puzzle question recipe river rope rug sandal scarf school seed shirt shoe shop song "
    "sock stamp stone street student suitcase table tent ticket tool towel town toy tree tunnel village "
    "visitor wall wheel window word"
)
PEOPLE = words(
    "artist aunt bishop boy brother captain child cousin daughter driver duke emperor explorer father "
    "friend giant girl grandfather grandmother guard hunter inventor king knight lady lord magician man "
    "manager mother neighbour owner passenger pirate porter prince princess professor queen runner "
    "scientist scout sister soldier son stranger thief traveller twin uncle visitor witch wizard woman"
)
TITLES = words("Aunt Captain Dr King Lady Lord Miss Mr Mrs Old Professor Queen Sir Uncle Young")
OWNERS = words("my our his her their")
WHERE = PLACES + phrases(
    "across the river, along the beach, around the lake, at a hotel, at home, at school, at the airport, at "
    "the back of the bus, at the corner, at the harbour, at the station, at the top of the hill, behind the "
    "church, between two rocks, by the sea, by the well, far away, in a cave, in a small village, in a "
    "tent, in bed, in front of the theatre, in the bathroom, in the capital, in the desert, in the east, in "
    "the forest, in the hospital, in the mountains, in the next street, in the north, in the old tower, in "
    "the park, in the snow, in the south, in the west, inside the castle, near the border, near the bridge, "
    "next to the bank, on a farm, on an island, on the coast, on the first floor, on the hill, on the left, "
    "on the right, on the square, on the wall, outside the gate, over the fireplace, under a tree, upstairs"
)
WHEN = phrases(
    "after breakfast, after dark, after lunch, after midnight, after the meeting, all day, all night, as a "
    "child, at dawn, at Easter, at lunchtime, at midnight, at night, at noon, at sunset, at weekends, "
    "before breakfast, before dinner, before the storm, during the holidays, during the war, early in the "
    "morning, every day, every month, every night, every summer, every week, every year, five years ago, "
    "from time to time, in autumn, in spring, in summer, in the afternoon, in the evening, in the morning, "
    "in winter, last month, last night, last summer, last week, last year, long ago, once a week, the day "
    "before yesterday, three days ago, today, twice a year, yesterday"
)
NUMBERS = words("two three four five six seven eight nine ten eleven twelve twenty thirty fifty sixty ninety")


def subject(names: Names) -> make_qa.Subject:
    """A person or an animal: "Mirela", "Dr Mirela", "the tall doctor" or "our cat"."""
    rng = names.rng
    he, his, him, ends = rng.choice([("he", "his", "him", MALE_ENDS), ("she", "her", "her", FEMALE_ENDS)])
    kind = rng.random()
    if kind < 0.6:
        name = names.person(ends)
    elif kind < 0.8:
        name = f"{rng.choice(TITLES)} {names.person(ends)}"
    elif kind < 0.9:
        name = f"the {rng.choice(ADJECTIVES + COLOURS)} {rng.choice(PEOPLE + JOBS + ANIMALS)}"
    else:
        name = f"{rng.choice(OWNERS)} {rng.choice(PEOPLE + ANIMALS)}"
    return make_qa.Subject(Word(name), he, his, him)


def facts(rng: Random) -> tuple[Fact, ...]:
    """Three kinds of facts for `make_qa.story`."""
    return tuple(rng.choice([action, action, event, gift, office, quality, amount])(rng) for _ in range(3))


def action(rng: Random) -> Fact:
    """The subject acts on a thing or a person: "Mirela washed the old plate"."""
    base, third, past, participle = rng.choice(VERBS)
    what, was = rng.choice([(one, "was"), (several, "were"), (Names.person, "was")])
    sentences = rng.choice(
        [
            (
                f"{{who}} {third} {{what}}",
                f"{{what}} is what {{who}} {third}",
                f"{{who}} likes to {base} {{what}}",
            ),
            (
                f"{{who}} {past} {{what}}",
                f"it was {{what}} that {{who}} {past}",
                f"{{what}} {was} {participle} by {{whom}}",
            ),
        ]
    )
    return with_place_and_time(rng, sentences, {"what": what})


def event(rng: Random) -> Fact:
    """The subject is active in a place: "Mirela waited at the harbour"."""
    third, past = rng.choice(INTRANSITIVE).split()
    form = rng.choice([third, past])
    sentences = f"{{who}} {form} {{where}}", f"{{where}} {{who}} {form}", f"{{who}} often {form} {{where}}"
    return with_place_and_time(rng, sentences, {"where": WHERE})


def gift(rng: Random) -> Fact:
    """A thing changes hands: "Mirela lent a ladder to Tarvin"."""
    given, received = rng.choice(GIVING)
    thing = Word(rng.choice(NOUNS))
    sentences = (
        f"{{who}} {given} {thing:a} to {{other}}",
        f"it was {{other}} to whom {{who}} {given} {thing:a}",
        f"{{other}} {received} {thing:a} from {{who}}",
    )
    return with_place_and_time(rng, sentences, {"other": Names.person})


def office(rng: Random) -> Fact:
    """The subject holds an office: "Mirela is the baker of Belford"."""
    role = rng.choice(PEOPLE + JOBS)
    sentences = (
        f"{{who}} is the {role} of {{town}}",
        f"the {role} of {{town}} is {{who}}",
        f"as the {role} of {{town}}, {{who}} is well known",
        f"the town of {{town}} chose {{whom}} as its {role}",
    )
    return as_fact({"town": Names.town}, sentences)


def quality(rng: Random) -> Fact:
    """The color or quality of a possession: "Mirela has a red scarf"."""
    thing = Word(rng.choice(NOUNS + ANIMALS + PEOPLE))
    sentences = (
        f"{{whose}} {thing} is {{what}}",
        f"{{who}} has a {{what}} {thing}",
        f"the {{what}} {thing} belongs to {{whom}}",
        f"the {thing} of {{whom}} is {{what}}",
    )
    return as_fact({"what": rng.choice([COLOURS, ADJECTIVES])}, sentences)


def amount(rng: Random) -> Fact:
    """The number of things acted on: "Mirela sold twelve stamps"."""
    things = plural(rng.choice(NOUNS + ANIMALS))
    _, third, past, participle = rng.choice(VERBS)
    sentences = (
        f"{{who}} {past} {{count}} {things}",
        f"{{count}} {things} were {participle} by {{whom}}",
        f"the number of {things} that {{who}} {third} is {{count}}",
    )
    return with_place_and_time(
        rng, sentences, {"count": rng.choice([NUMBERS, number(2, 99), number(100, 999)])}
    )


def one(names: Names) -> str:
    """A thing, an animal or a material."""
    rng = names.rng
    adjective, noun = rng.choice(ADJECTIVES + COLOURS), rng.choice(NOUNS + ANIMALS)
    material = rng.choice(FOODS + DRINKS)
    return rng.choice(
        [f"{Word(adjective):a} {noun}", f"the {adjective} {noun}", f"{Word(noun):a}", f"the {noun}", material]
    )


def several(names: Names) -> str:
    """Several things or animals."""
    rng = names.rng
    adjective, things = rng.choice(ADJECTIVES + COLOURS), plural(rng.choice(NOUNS + ANIMALS))
    return rng.choice([f"{adjective} {things}", f"{rng.choice(NUMBERS)} {things}", things, rng.choice(WARES)])


def plural(noun: str) -> str:
    irregular = {"goose": "geese", "mouse": "mice", "sheep": "sheep", "pony": "ponies"}
    return irregular.get(noun, noun + ("es" if noun.endswith(("x", "ch", "sh")) else "s"))


def with_place_and_time(rng: Random, sentences: tuple[str, ...], values: dict[str, Values]) -> Fact:
    """Each sentence with the same place and time, or one of them or none, at its end or start."""
    if "where" not in values and rng.random() < 0.4:
        sentences = tuple(f"{sentence} {{where}}" for sentence in sentences)
        values = values | {"where": WHERE}
    if rng.random() < 0.4:
        at_end = [f"{sentence} {{when}}" for sentence in sentences]
        sentences = (*at_end, *(f"{{when}} {sentence}" for sentence in sentences))
        values = values | {"when": WHEN}
    return as_fact(values, sentences)


def as_fact(values: dict[str, Values], sentences: tuple[str, ...]) -> Fact:
    """A kind of fact without questions: pretraining needs only the names of the slots that can be removed."""
    return Fact(values, sentences, dict.fromkeys(("who", *values), ()))
