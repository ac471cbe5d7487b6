"""Vocabulary of the reading-comprehension set: names, values, and sentences and questions for kinds of facts.

To add a kind of fact, add an entry to one of the tables below: its values, the sentences that state it, and
the questions whose answer is one of its values. make_qa.py generates the passages.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random


def words(text: str) -> list[str]:
    return text.split()


def phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


# ------------------------------------------------------------------------------------------------------ names

STARTS = words(
    "Al Bal Bel Ber Bran Bren Cal Car Cor Dal Dar Del Dor Dun El Er Fal Far Fen Fer Gal Gar Gil Gor Hal "
    "Har Hel Hol Il Ir Jal Jan Jor Kal Kar Kel Ker Kor Lan Lar Lin Lor Mal Mar Mel Mer Mil Mir Mon Mor Nal "
    "Nar Nel Nor Ol Or Pal Par Pel Per Pol Quil Ral Ran Ren Ros Sal San Sel Ser Sil Sol Sor Tal Tan Tar "
    "Tel Ter Tor Ul Ur Val Van Var Vel Ver Vin Vor Wal Wen Wil Win Yal Yar Yor Zan Zar Zel Zor"
)
MIDDLES = words(
    "a e i o u ba be bi bo da de di do fa fi ga ge go ka ke ki ko la le li lo ma me mi mo na ne ni no ra "
    "re ri ro sa se si so ta te ti to va ve vi vo wa we za ze zi zo"
)
FEMALE_ENDS = words(
    "bia cia dia dra fina la lena lia lina lisa mia na nia nessa ra ria rina sa sia ssa tha tia ya zia"
)
MALE_ENDS = words(
    "bert bin dan dek dor drik fred gan go kan ko lan lek lo man mo nard nek no ric rik ro sten ton vin"
)
PET_ENDS = words("bo by do dy fi fy ki ky li mo pi po py sy ti to xy zy")
SHIP_ENDS = words("andra antia ara eia elle enna essa iana istra ora una ysta")
RIVER_ENDS = words("ane aver ela enne ine ith oke une urne ym")
TOWN_LINKS = ["", "", "", "er", "en", "ing", "ley", "s"]
TOWN_ENDS = words(
    "bridge brook bury by cliff combe dale field fold ford gate grove ham haven hill holm mere moor mouth "
    "port stead ton well wick wood worth"
)


class Word(str):
    """A string with article and genitive for patterns: `{job:a}` is "an actor", `{name:s}` is "Ann's"."""

    def __format__(self, form: str) -> str:
        if form == "a":
            return f"{'an' if self[0] in 'aeiou' else 'a'} {self}"
        return f"{self}'s" if form == "s" else str(self)


class Names:
    """The names of one passage, all different and all from the passage's split.

    A checksum assigns each name to a split. So the splits have no names in common, even with passages that a
    pretraining script streams from "train". `seam` is inserted between the parts of a name.
    """

    def __init__(self, rng: Random, split: str, seam: str = ""):
        self.rng, self.split, self.seam = rng, split, seam
        self.used: set[str] = set()
        self.people: set[str] = set()

    @staticmethod
    def split_of(name: str) -> str:
        share = zlib.crc32(name.encode()) % 10
        return {0: "test", 1: "valid"}.get(share, "train")

    def invent(self, *parts: list[str]) -> Word:
        while True:
            chosen = [self.rng.choice(part) for part in parts]
            name = "".join(chosen)
            if name not in self.used and self.split_of(name) == self.split:
                self.used.add(name)
                return Word(self.seam.join(filter(None, chosen)))

    def person(self, ends: list[str] | None = None) -> Word:
        name = self.invent(STARTS, MIDDLES, ends or self.rng.choice([FEMALE_ENDS, MALE_ENDS]))
        self.people.add(name)
        return name

    def pet(self) -> Word:
        return self.invent(STARTS, PET_ENDS)

    def ship(self) -> Word:
        return self.invent(STARTS, MIDDLES, SHIP_ENDS)

    def river(self) -> Word:
        return self.invent(STARTS, RIVER_ENDS)

    def town(self) -> Word:
        return self.invent(STARTS, TOWN_LINKS, TOWN_ENDS)


# ------------------------------------------------------------------------------------------- values and facts

Values = list[str] | Callable[[Names], str]  # a list to choose from, or a function that generates a value


def number(low: int, high: int, unit: str = "") -> Callable[[Names], str]:
    return lambda names: f"{names.rng.randint(low, high)} {unit}".strip()


def date(names: Names) -> str:
    return f"{names.rng.randint(1, 28)} {names.rng.choice(MONTHS)}"


MONTHS = phrases(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
DAYS = phrases("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
COLOURS = phrases("red, blue, green, yellow, white, black, brown, grey, orange, purple, pink, golden, silver")
JOBS = phrases(
    "actor, architect, baker, barber, beekeeper, blacksmith, butcher, carpenter, clockmaker, cook, dentist, "
    "doctor, engineer, farmer, fisherman, gardener, glazier, guide, judge, lawyer, librarian, locksmith, "
    "miller, miner, nurse, painter, photographer, pilot, plumber, poet, postman, potter, printer, sailor, "
    "sculptor, shepherd, shoemaker, singer, tailor, teacher, translator, vet, watchman, weaver, writer"
)
ANIMALS = phrases(
    "cat, dog, donkey, duck, ferret, frog, goat, goose, hamster, hedgehog, hen, horse, lizard, mouse, owl, "
    "parrot, pigeon, pony, rabbit, raven, sheep, snake, squirrel, tortoise, turtle"
)
FOODS = phrases(
    "apple cake, bean soup, beef stew, bread pudding, carrot soup, cheese pie, cherry jam, chicken curry, "
    "fish soup, fried eggs, garlic bread, grilled fish, honey cake, lamb stew, lemon tart, mushroom pie, "
    "noodles, onion soup, pancakes, pea soup, pear tart, plum cake, potato salad, pumpkin pie, rice pudding, "
    "roast duck, tomato soup"
)
DRINKS = phrases(
    "apple juice, barley tea, black coffee, buttermilk, cherry juice, cocoa, ginger tea, hot milk, lemonade, "
    "mint tea, orange juice, pear juice, plum juice, rose tea, sour milk, sweet tea"
)
INSTRUMENTS = phrases(
    "accordion, banjo, bassoon, cello, clarinet, drum, fiddle, flute, guitar, harp, horn, lute, mandolin, "
    "oboe, organ, piano, saxophone, trombone, trumpet, tuba, viola, violin, zither"
)
HOBBIES = phrases(
    "baking bread, carving wood, climbing, collecting stamps, dancing, drawing maps, fishing, flying kites, "
    "growing roses, juggling, keeping bees, knitting, mending clocks, painting birds, picking mushrooms, "
    "playing chess, reading poems, riding, rowing, sailing, singing, skating, sketching, swimming, watching "
    "stars, writing letters"
)
FEARS = phrases(
    "bats, big dogs, bulls, crowds, deep water, fire, geese, ghosts, heights, loud noises, mice, moths, "
    "needles, snakes, spiders, the dark, thunder, wasps, wolves"
)
VEHICLES = phrases("bicycle, bus, cart, jeep, lorry, moped, motorcycle, scooter, sledge, tractor, van, wagon")
WARES = phrases(
    "bells, boots, brooms, candles, carpets, cheese, cider, clocks, gloves, hats, honey, kites, knives, "
    "lace, mustard, paper, pears, pottery, ropes, silk, soap, tiles, toys, umbrellas, violins, wool"
)
CARGOES = phrases(
    "bananas, barley, bricks, coal, coffee, copper, cotton, furs, grain, iron, marble, oil, oranges, rice, "
    "salt, spices, sugar, tea, timber, tin, wheat, wine"
)
BUILDINGS = phrases(
    "abbey, bakery, barn, castle, chapel, church, fort, inn, library, lighthouse, mill, museum, palace, "
    "prison, school, stable, theatre, town hall, watchtower"
)
PLACES = phrases(
    "behind the clock, behind the curtain, behind the door, behind the mirror, behind the stove, beside the "
    "bed, beside the window, in the attic, in the barn, in the basket, in the boat, in the cellar, in the "
    "cupboard, in the drawer, in the garage, in the garden, in the hall, in the kitchen, in the library, in "
    "the shed, on the chair, on the roof, on the shelf, on the stairs, on the table, under the bed, under "
    "the bridge, under the carpet, under the pillow, under the sofa"
)
MATERIALS = phrases(
    "brass, clay, copper, glass, gold, iron, leather, paper, silver, stone, velvet, wooden, woollen"
)
THINGS = phrases(
    "bell, bowl, box, coat, comb, compass, crown, cup, hammer, jug, kettle, key, lamp, mask, mirror, ring, "
    "spoon, statue, umbrella, vase, watch, whistle"
)
GATHERINGS = phrases("concert, contest, dance, fair, feast, market, parade, race, regatta")
PRIZES = phrases(
    "a barrel, a basket of pears, a book, a cake, a cow, a goat, a goose, a hat, a kite, a lamp, a medal, a "
    "pig, a ring, a saddle, a sack of flour, a silver cup, a watch"
)


@dataclass(frozen=True)
class Fact:
    """A kind of fact. Patterns have slots for its `values`, and for its subject:

    {who} {whose} {whom}   the subject's name, or a pronoun if the previous sentence is about it
    {he} {his} {him}       always the pronoun, after the name in the same pattern
    """

    values: Mapping[str, Values]
    sentences: tuple[str, ...]
    questions: Mapping[str, tuple[str, ...]]  # slot of the answer -> questions; "who": the subject's name


def fact(values: Mapping[str, Values], sentences: str, **questions: str) -> Fact:
    """A Fact from texts with one pattern per line."""
    return Fact(values, lines(sentences), {slot: lines(text) for slot, text in questions.items()})


PERSON_FACTS = (
    fact(
        {"job": JOBS},
        """
            {who} works as {job:a}
            {who} is {job:a}
            {who} earns {his} living as {job:a}
            by profession {who} is {job:a}
            for many years {who} has been {job:a}
            when {who} left school, {he} became {job:a}
            {whose} job is the work of {job:a}
            what {who} does for a living is the work of {job:a}
        """,
        job="""
            What is {whose} job?
            What does {who} do for a living?
            What does {who} work as?
            What is {whose} profession?
            What is {who} by profession?
            What did {who} become after school?
        """,
        who="""
            Who works as {job:a}?
            Who is {job:a}?
            Who earns a living as {job:a}?
            Who is {job:a} by profession?
        """,
    ),
    fact(
        {"home": Names.town},
        """
            {who} lives in {home}
            {whose} home is in {home}
            {who} has a house in {home}
            {who} has lived in {home} for years
            some years ago {who} moved to {home}
            the town where {who} lives is {home}
            {home} is the town that {who} calls home
            those who want to visit {whom} must go to {home}
        """,
        home="""
            Where does {who} live?
            In which town does {who} live?
            Where is {whose} home?
            Where is {whose} house?
            Where did {who} move to?
            Which town does {who} call home?
        """,
        who="""
            Who lives in {home}?
            Whose home is in {home}?
            Who has a house in {home}?
            Who moved to {home}?
        """,
    ),
    fact(
        {"birthplace": Names.town},
        """
            {who} was born in {birthplace}
            {who} comes from {birthplace}
            {who} grew up in {birthplace}
            {who} spent {his} childhood in {birthplace}
            {whose} birthplace is {birthplace}
            as a child {who} went to school in {birthplace}
            the town where {who} was born is {birthplace}
        """,
        birthplace="""
            Where was {who} born?
            Where does {who} come from?
            What is {whose} birthplace?
            Where did {who} grow up?
            In which town was {who} born?
            Where did {who} spend {his} childhood?
        """,
        who="""
            Who was born in {birthplace}?
            Who comes from {birthplace}?
            Who grew up in {birthplace}?
        """,
    ),
    fact(
        {"year": number(1900, 1999)},
        """
            {who} was born in {year}
            {whose} year of birth is {year}
            {year} is the year when {who} was born
            {who} came into the world in {year}
            {whose} life began in {year}
        """,
        year="""
            When was {who} born?
            In which year was {who} born?
            What is {whose} year of birth?
            When did {whose} life begin?
            In what year did {who} come into the world?
        """,
        who="""
            Who was born in {year}?
            Whose year of birth is {year}?
            Whose life began in {year}?
        """,
    ),
    fact(
        {"animal": ANIMALS, "pet": Names.pet},
        """
            {who} has {animal:a} called {pet}
            {who} owns {animal:a} whose name is {pet}
            {who} keeps {animal:a} named {pet}
            {whose} pet is {animal:a} called {pet}
            {pet} is the name of {whose} {animal}
            {pet}, {animal:a}, belongs to {whom}
            {who} looks after {pet}, {his} {animal}
        """,
        animal="""
            What kind of animal is {pet}?
            Which animal does {who} have?
            What pet does {who} keep?
            What kind of pet does {who} own?
        """,
        pet="""
            What is the name of {whose} {animal}?
            What is {whose} pet called?
            What is {whose} {animal} called?
            What name did {who} give {his} {animal}?
        """,
        who="""
            Who owns {pet}?
            Whose pet is {pet}?
            Who has {animal:a}?
            Who looks after {pet}?
        """,
    ),
    fact(
        {"food": FOODS},
        """
            {who} likes {food} best of all food
            {whose} favourite food is {food}
            {who} loves to eat {food}
            nothing tastes better to {whom} than {food}
            for lunch {who} always has {food}
            what {who} likes to eat most is {food}
        """,
        food="""
            What is {whose} favourite food?
            What does {who} love to eat?
            What does {who} like to eat most?
            Which food does {who} like best?
            What does {who} have for lunch?
        """,
        who="""
            Who likes {food} best?
            Whose favourite food is {food}?
            Who loves to eat {food}?
        """,
    ),
    fact(
        {"drink": DRINKS},
        """
            {who} drinks {drink} every morning
            {whose} favourite drink is {drink}
            when {who} is thirsty, {he} asks for {drink}
            the drink that {who} likes best is {drink}
            {who} never says no to {drink}
        """,
        drink="""
            What does {who} drink every morning?
            What is {whose} favourite drink?
            What does {who} like to drink?
            Which drink does {who} like best?
            What does {who} ask for when {he} is thirsty?
        """,
        who="""
            Who drinks {drink}?
            Whose favourite drink is {drink}?
            Who likes to drink {drink}?
        """,
    ),
    fact(
        {"instrument": INSTRUMENTS},
        """
            {who} plays the {instrument}
            {who} is learning to play the {instrument}
            in the evening {who} plays {his} {instrument}
            {whose} instrument is the {instrument}
            {who} is very good at the {instrument}
            the instrument that {who} plays is the {instrument}
            {who} practises the {instrument} every day
        """,
        instrument="""
            Which instrument does {who} play?
            What does {who} play in the evening?
            What is {whose} instrument?
            What instrument is {who} good at?
            What does {who} practise every day?
        """,
        who="""
            Who plays the {instrument}?
            Whose instrument is the {instrument}?
            Who practises the {instrument}?
        """,
    ),
    fact(
        {"hobby": HOBBIES},
        """
            {who} enjoys {hobby}
            {whose} hobby is {hobby}
            {who} spends {his} free time {hobby}
            on Sundays you will find {whom} {hobby}
            when the work is done, {who} likes {hobby}
            {who} is happiest when {he} is {hobby}
        """,
        hobby="""
            What is {whose} hobby?
            What does {who} enjoy?
            How does {who} spend {his} free time?
            What does {who} like to do after work?
            What makes {whom} happiest?
        """,
        who="""
            Who enjoys {hobby}?
            Whose hobby is {hobby}?
            Who spends free time {hobby}?
        """,
    ),
    fact(
        {"fear": FEARS},
        """
            {who} is afraid of {fear}
            {who} is scared of {fear}
            nothing frightens {whom} more than {fear}
            {whose} greatest fear is {fear}
            {who} has feared {fear} since {he} was a child
            what {who} fears most is {fear}
        """,
        fear="""
            What is {who} afraid of?
            What is {who} scared of?
            What frightens {whom}?
            What is {whose} greatest fear?
            What does {who} fear most?
        """,
        who="""
            Who is afraid of {fear}?
            Who is scared of {fear}?
            Who fears {fear} most?
        """,
    ),
    fact(
        {"colour": COLOURS, "vehicle": VEHICLES},
        """
            {who} drives {colour:a} {vehicle}
            {who} goes to work with {his} {colour} {vehicle}
            {who} bought {colour:a} {vehicle} last year
            {whose} {vehicle} is {colour}
            outside the house of {whom} stands {colour:a} {vehicle}
        """,
        colour="""
            What colour is {whose} {vehicle}?
            Which colour does {whose} {vehicle} have?
        """,
        vehicle="""
            What does {who} drive?
            What did {who} buy last year?
            What stands outside {whose} house?
        """,
        who="""
            Who drives {vehicle:a}?
            Who bought {vehicle:a}?
            Whose {vehicle} is {colour}?
        """,
    ),
    fact(
        {"teacher": Names.person},
        """
            {who} was taught by {teacher}
            {whose} teacher was {teacher}
            {who} learned everything from {teacher}
            the teacher of {whom} was {teacher}
            {teacher} taught {whom} all {he} knows
        """,
        teacher="""
            Who taught {whom}?
            Who was {whose} teacher?
            By whom was {who} taught?
            From whom did {who} learn everything?
        """,
        who="""
            Who was taught by {teacher}?
            Who learned everything from {teacher}?
            Whose teacher was {teacher}?
        """,
    ),
    fact(
        {"age": number(18, 90)},
        """
            {who} is {age} years old
            {whose} age is {age}
            {who} turned {age} this year
            at the age of {age}, {who} feels as fit as ever
            there were {age} candles on {whose} birthday cake
        """,
        age="""
            How old is {who}?
            What is {whose} age?
            How old did {who} turn this year?
            How many years old is {who}?
            How many candles were on {whose} birthday cake?
        """,
        who="""
            Who is {age} years old?
            Who turned {age} this year?
            Whose age is {age}?
        """,
    ),
    fact(
        {"day": DAYS},
        """
            {who} goes to the market every {day}
            every {day} you can meet {whom} at the market
            {whose} market day is {day}
            {who} does {his} shopping on {day}
            {day} is the day when {who} goes to the market
        """,
        day="""
            On which day does {who} go to the market?
            When does {who} do {his} shopping?
            What is {whose} market day?
            When can you meet {whom} at the market?
        """,
        who="""
            Who goes to the market on {day}?
            Who does the shopping on {day}?
            Whose market day is {day}?
        """,
    ),
    fact(
        {"ware": WARES},
        """
            {who} sells {ware}
            {who} has a shop that sells {ware}
            in {his} shop {who} sells {ware}
            people buy {ware} from {whom}
            {whose} shop is full of {ware}
            those who need {ware} go to {whose} shop
        """,
        ware="""
            What does {who} sell?
            What is {whose} shop full of?
            What do people buy from {whom}?
            What can you buy in {whose} shop?
        """,
        who="""
            Who sells {ware}?
            Whose shop is full of {ware}?
            From whom do people buy {ware}?
        """,
    ),
)

TOWN_FACTS = (
    fact(
        {"founder": Names.person},
        """
            {who} was founded by {founder}
            {founder} founded {whom}
            the founder of {whom} was {founder}
            it was {founder} who built the first house of {whom}
            {who} owes its beginning to {founder}
        """,
        founder="""
            Who founded {whom}?
            By whom was {who} founded?
            Who was the founder of {whom}?
            Who built the first house of {whom}?
        """,
        who="""
            Which town was founded by {founder}?
            Which town did {founder} found?
        """,
    ),
    fact(
        {"year": number(1100, 1899)},
        """
            {who} was founded in {year}
            {who} has been a town since {year}
            the first house of {whom} was built in {year}
            {whose} history began in {year}
            {year} is the year when {who} was founded
        """,
        year="""
            When was {who} founded?
            In which year was {who} founded?
            When did {whose} history begin?
            When was the first house of {whom} built?
            Since when has {who} been a town?
        """,
        who="""
            Which town was founded in {year}?
            Which town's history began in {year}?
        """,
    ),
    fact(
        {"river": Names.river},
        """
            {who} lies on the river {river}
            the river {river} flows through {whom}
            {whose} river is called the {river}
            those who cross {whom} must cross the {river}
            the {river} is the river of {whom}
        """,
        river="""
            Which river flows through {whom}?
            On which river does {who} lie?
            What is {whose} river called?
            What is the river of {whom}?
        """,
        who="""
            Which town lies on the {river}?
            Through which town does the {river} flow?
        """,
    ),
    fact(
        {"mayor": Names.person},
        """
            the mayor of {whom} is {mayor}
            {mayor} is the mayor of {whom}
            {whose} mayor is called {mayor}
            {who} chose {mayor} as mayor
            the people of {whom} made {mayor} their mayor
        """,
        mayor="""
            Who is the mayor of {whom}?
            What is {whose} mayor called?
            Whom did {who} choose as mayor?
            Who is {whose} mayor?
        """,
        who="""
            Of which town is {mayor} the mayor?
            Which town chose {mayor} as mayor?
        """,
    ),
    fact(
        {"ware": WARES},
        """
            {who} is known for its {ware}
            {who} is famous for {ware}
            people come to {whom} to buy {ware}
            the best {ware} in the country are said to come from {whom}
            {whose} workshops make {ware}
            what made {whom} famous was its {ware}
        """,
        ware="""
            What is {who} known for?
            What is {who} famous for?
            What do {whose} workshops make?
            What do people buy in {whom}?
            What made {whom} famous?
        """,
        who="""
            Which town is known for its {ware}?
            Which town is famous for {ware}?
            Where do people go to buy {ware}?
        """,
    ),
    fact(
        {"miles": number(3, 99, "miles")},
        """
            {who} lies {miles} from the sea
            from {whom} to the sea it is {miles}
            {who} is {miles} away from the sea
            the people of {whom} travel {miles} to reach the sea
            between {whom} and the sea there are {miles} of road
        """,
        miles="""
            How far is {who} from the sea?
            How far is it from {whom} to the sea?
            How far away from the sea does {who} lie?
            How many miles is {who} away from the sea?
        """,
        who="""
            Which town lies {miles} from the sea?
            Which town is {miles} away from the sea?
        """,
    ),
    fact(
        {"building": BUILDINGS},
        """
            the oldest building of {whom} is the {building}
            {whose} pride is the old {building}
            visitors of {whom} admire the {building}
            in the middle of {whom} stands the {building}
            no building in {whom} is older than the {building}
        """,
        building="""
            What is the oldest building of {whom}?
            What is {whose} pride?
            What do visitors of {whom} admire?
            What stands in the middle of {whom}?
            Which building in {whom} is the oldest?
        """,
        who="""
            In the middle of which town stands the {building}?
            In which town do visitors admire the {building}?
        """,
    ),
)

SHIP_FACTS = (
    fact(
        {"captain": Names.person},
        """
            the captain of {whom} is {captain}
            {captain} is the captain of {whom}
            {who} sails under captain {captain}
            {whose} captain is called {captain}
            {captain} has command of {whom}
        """,
        captain="""
            Who is the captain of {whom}?
            What is {whose} captain called?
            Who has command of {whom}?
            Under which captain does {who} sail?
        """,
        who="""
            Which ship sails under captain {captain}?
            Of which ship is {captain} the captain?
        """,
    ),
    fact(
        {"cargo": CARGOES},
        """
            {who} carries {cargo}
            {whose} cargo is {cargo}
            {who} is loaded with {cargo}
            there is {cargo} on board of {whom}
            {who} brings {cargo} across the sea
        """,
        cargo="""
            What does {who} carry?
            What is {whose} cargo?
            What is {who} loaded with?
            What is on board of {whom}?
            What does {who} bring across the sea?
        """,
        who="""
            Which ship carries {cargo}?
            Which ship is loaded with {cargo}?
        """,
    ),
    fact(
        {"port": Names.town},
        """
            {who} is on its way to {port}
            {who} is sailing to {port}
            {port} is the port that {who} is bound for
            the next port of {whom} is {port}
            {who} will reach {port} soon
        """,
        port="""
            Where is {who} sailing to?
            What is the next port of {whom}?
            Which port is {who} bound for?
            Where is {who} on its way to?
        """,
        who="""
            Which ship is sailing to {port}?
            Which ship is on its way to {port}?
        """,
    ),
    fact(
        {"year": number(1800, 1999)},
        """
            {who} was built in {year}
            {who} has been at sea since {year}
            {who} was launched in {year}
            {year} is the year when {who} was built
            {whose} first voyage was in {year}
        """,
        year="""
            When was {who} built?
            In which year was {who} launched?
            Since when has {who} been at sea?
            When was {whose} first voyage?
        """,
        who="""
            Which ship was built in {year}?
            Which ship was launched in {year}?
        """,
    ),
    fact(
        {"colour": COLOURS},
        """
            {who} has {colour} sails
            {whose} sails are {colour}
            the sails of {whom} are {colour}
            you can tell {whom} by its {colour} sails
        """,
        colour="""
            What colour are {whose} sails?
            What colour are the sails of {whom}?
            Which colour do the sails of {whom} have?
        """,
        who="""
            Which ship has {colour} sails?
            Which ship can you tell by its {colour} sails?
        """,
    ),
)

THING_FACTS = (
    fact(
        {"place": PLACES},
        """
            {who} is {place}
            {who} lies {place}
            somebody left {whom} {place}
            you will find {whom} {place}
            the place of {whom} is {place}
            those who look for {whom} should look {place}
        """,
        place="""
            Where is {who}?
            Where will you find {whom}?
            Where did somebody leave {whom}?
            Where should one look for {whom}?
        """,
        who="""
            What is {place}?
            What lies {place}?
            What did somebody leave {place}?
        """,
    ),
    fact(
        {"owner": Names.person},
        """
            {who} belongs to {owner}
            {owner} owns {whom}
            the owner of {whom} is {owner}
            {who} is the property of {owner}
            it is {owner} who owns {whom}
        """,
        owner="""
            Who owns {whom}?
            To whom does {who} belong?
            Who is the owner of {whom}?
            Whose property is {who}?
        """,
        who="""
            What does {owner} own?
            What belongs to {owner}?
        """,
    ),
    fact(
        {"price": number(2, 99, "coins")},
        """
            {who} costs {price}
            the price of {whom} is {price}
            you can buy {whom} for {price}
            {who} is worth {price}
            somebody offered {price} for {whom}
        """,
        price="""
            How much does {who} cost?
            What is the price of {whom}?
            How much is {who} worth?
            For how much can you buy {whom}?
            How many coins did somebody offer for {whom}?
        """,
        who="""
            What costs {price}?
            What is worth {price}?
            What can you buy for {price}?
        """,
    ),
    fact(
        {"maker": Names.person},
        """
            {who} was made by {maker}
            {maker} made {whom}
            the maker of {whom} was {maker}
            {who} is the work of {maker}
            it was {maker} who made {whom}
        """,
        maker="""
            Who made {whom}?
            By whom was {who} made?
            Who was the maker of {whom}?
            Whose work is {who}?
        """,
        who="""
            What did {maker} make?
            What was made by {maker}?
        """,
    ),
)

GATHERING_FACTS = (
    fact(
        {"date": date},
        """
            {who} is on {date}
            {who} takes place on {date}
            the date of {whom} is {date}
            people meet for {whom} on {date}
            {who} begins on {date}
        """,
        date="""
            When is {who}?
            When does {who} take place?
            What is the date of {whom}?
            On which date does {who} begin?
            When do people meet for {whom}?
        """,
        who="""
            What takes place on {date}?
            What begins on {date}?
        """,
    ),
    fact(
        {"host": Names.person},
        """
            {who} is organised by {host}
            {host} organises {whom}
            the host of {whom} is {host}
            it is {host} who invites everybody to {whom}
            {host} prepares {whom}
        """,
        host="""
            Who organises {whom}?
            Who is the host of {whom}?
            Who prepares {whom}?
            Who invites everybody to {whom}?
            By whom is {who} organised?
        """,
        who="""
            What does {host} organise?
            What does {host} prepare?
        """,
    ),
    fact(
        {"prize": PRIZES, "winner": Names.person},
        """
            at {whom} {winner} won {prize}
            last year {winner} won {prize} at {whom}
            {winner} took {prize} home from {whom}
            the prize of {whom}, {prize}, went to {winner}
        """,
        winner="""
            Who won {prize}?
            Who won {prize} at {whom}?
            Who took {prize} home?
            To whom did the prize of {whom} go?
        """,
        prize="""
            What did {winner} win?
            What did {winner} take home?
            What was the prize of {whom}?
        """,
    ),
    fact(
        {"guests": number(20, 900, "people")},
        """
            {guests} came to {whom}
            there were {guests} at {whom}
            {who} was visited by {guests}
            {guests} had a good time at {whom}
        """,
        guests="""
            How many people came to {whom}?
            How many people were at {whom}?
            By how many people was {who} visited?
            How many people had a good time at {whom}?
        """,
    ),
)

# Relations of two people: (female, male) words for the subject.
KIN = (
    ("sister", "brother"),
    ("aunt", "uncle"),
    ("niece", "nephew"),
    ("cousin", "cousin"),
    ("friend", "friend"),
)
KINSHIP = fact(
    {},
    """
        {who} is the {kin} of {other}
        {who} is {other:s} {kin}
        {other} has {kin:a} called {name}
        {other:s} {kin} is {name}
        {other} and {other_his} {kin} {name} often meet
    """,
    who="""
        Who is {other:s} {kin}?
        Who is the {kin} of {other}?
        What is {other:s} {kin} called?
    """,
    other="""
        Whose {kin} is {who}?
    """,
)

OPENINGS = lines("""
    this is what people tell about {all}
    here is what we know about {all}
    let me tell you about {all}
    everybody talks about {all}
    a traveller wrote down a few things about {all}
    it is easy to mix up {all}
    there is a lot to say about {all}
""")
ASIDES = lines("""
    the weather was fine
    it was a quiet year
    nobody was surprised
    that is what the neighbours say
    not everybody knows this
    the newspaper wrote about it
    so the story goes
    time passes quickly
""")
REMINDERS = (
    "as we know, ",
    "in other words, ",
    "it is true that ",
    "everybody knows that ",
    "so ",
    "as I said, ",
    "indeed, ",
)
