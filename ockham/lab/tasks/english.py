"""English reports about places, and facts hidden in them: what models are asked that know the
language and not the formats of the other tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ockham.lab.tasks.vocabulary import CITIES, invented_name, words

_PLACES = words(
    """bakery bridge brewery castle farm harbour hospital hotel library lighthouse market mill
    museum prison railway school station theatre tower vineyard workshop zoo"""
)
MONTHS = words(
    """January February March April May June July August September October November December"""
)
FIRST_NAMES = words(
    """Alice Anna Arthur Clara Daniel Edith Emma Frank Grace Harold Henry Irene James Julia Laura
    Lucy Martin Nora Oscar Paul Peter Rose Samuel Simon Sophie Thomas Victor Walter"""
)
_THINGS = words(
    """bench boiler carpet chimney clock cupboard door engine fence floor gate ladder lamp lock
    mirror oven pipe pump roof rope shelf sign stove table tank wall wheel window"""
)
COLOURS = words("black blue brown golden green grey orange purple red silver white yellow")
_KEEPERS = words("box cabinet cellar chest drawer garage locker safe storeroom trunk")
_CODES = words(
    """anchor apple arrow candle carrot castle cherry copper diamond dragon eagle falcon feather
    forest hammer honey island lemon marble mountain ocean olive panther pepper pirate planet
    rabbit river rocket saddle shadow silver spider thunder tiger tulip velvet violin walnut
    winter"""
)

_SENTENCES = (
    "The {place} in {city} was opened in {month} {year} and has been repaired {few} times since.",
    "{person} looks after the {place} in {city} and begins work before seven in the morning.",
    "In {month} the {thing} of the {place} broke, and nobody could mend it for {few} weeks.",
    "Visitors of the {place} pay {few} coins at the entrance, but children may go in for nothing.",
    "A storm in {month} {year} took away part of the roof, which was replaced before the winter.",
    "The {colour} {thing} beside the entrance was a gift of a family from {other}.",
    "{person} wrote a letter about the noise, and the owners promised to close the gate at night.",
    "There are {many} steps up to the highest room, from which one can see as far as {other}.",
    "Every {month} the people who work at the {place} meet and talk about the coming year.",
    "An old photograph shows the {place} before the {thing} was moved to the other side.",
    "Because of the heavy rain, the cellar was under water for {few} days in {month}.",
    "{person} and {person} painted the {thing} {colour}, although the plan had asked for {colour}.",
    "The newspaper of {city} called the {place} the best kept building of the whole street.",
    "About {many} people came on the first day, many more than there was room for.",
    "The {thing} is cleaned once in {few} months by a small company from {other}.",
    "When the money ran out in {year}, the town lent the owners what they needed.",
    "{person} still remembers how the {thing} was carried in by {few} men.",
    "A cat that belongs to nobody sleeps beside the {thing} and is fed by whoever comes first.",
    "The plans for a second floor were given up, as the ground turned out to be too soft.",
    "Since {year} the {place} has had electric light, and the old lamps stand in the hall.",
    "{person} asked for a new {thing}, and got a used one from the {place} in {other}.",
    "In summer the doors stay open until nine, in winter only until half past five.",
    "The road to {city} was closed for {few} days, so that deliveries came by boat.",
    "Nothing is known of the architect, except that he came from {other} and liked {colour} stone.",
    "A school class from {other} counted {many} birds on the roof in a single afternoon.",
    "Most of the furniture is older than the {place} itself and was bought in {other}.",
    "The owners think of selling the {thing}, for which a museum has offered a good price.",
    "Two clocks hang in the hall, and they have never shown the same time.",
)

_SUMMARY = "Which places is this report about? Name each of them."


@dataclass(frozen=True, slots=True)
class Hidden:
    """A fact in a text: the sentence that tells it, the question for it, and the word that answers
    it."""

    sentence: str
    question: str
    word: str


def draw_hidden(rng: Random, number: int) -> list[Hidden]:
    """Facts of different kinds, no two of which are about the same thing."""
    found: dict[str, Hidden] = {}
    while len(found) < number:
        hidden = rng.choice(_KINDS)(rng)
        found.setdefault(hidden.question, hidden)
    return list(found.values())


def _number(rng: Random) -> Hidden:
    what = f"{rng.choice(COLOURS)} {rng.choice(_KEEPERS)}"
    number = str(rng.randrange(1000, 10_000))
    return Hidden(
        f"The secret number of the {what} is {number}.",
        f"What is the secret number of the {what}?",
        number,
    )


def _password(rng: Random) -> Hidden:
    name, word = invented_name(rng), rng.choice(_CODES)
    return Hidden(
        f"The password of {name} is {word}.",
        f"What is the password of {name}?",
        word,
    )


def _keeper(rng: Random) -> Hidden:
    what, place = f"{rng.choice(COLOURS)} {rng.choice(_CODES)} key", rng.choice(_KEEPERS)
    return Hidden(
        f"The {what} is hidden in the {place}.",
        f"Where is the {what} hidden?",
        place,
    )


def _visit(rng: Random) -> Hidden:
    name, city = invented_name(rng), rng.choice(CITIES)
    return Hidden(
        f"Doctor {name} will travel to {city} next week.",
        f"To which city will Doctor {name} travel next week?",
        city,
    )


def _favourite(rng: Random) -> Hidden:
    name, colour = invented_name(rng), rng.choice(COLOURS)
    return Hidden(
        f"The favourite colour of Captain {name} is {colour}.",
        f"What is the favourite colour of Captain {name}?",
        colour,
    )


_KINDS: tuple[Callable[[Random], Hidden], ...] = (_number, _password, _keeper, _visit, _favourite)


@dataclass(frozen=True, slots=True)
class Report:
    """Paragraphs about a few places, with facts hidden between their sentences."""

    text: str
    places: tuple[str, ...]
    hidden: tuple[Hidden, ...]

    question = _SUMMARY


def write_report(
    rng: Random, tokens: int, facts: int, count: Callable[[str], int], places: int = 4
) -> Report:
    """A report of about so many tokens. Facts stand in different places of it, evenly spread."""
    hidden = draw_hidden(rng, facts)
    kinds, cities = rng.sample(_PLACES, places), rng.sample(CITIES, places)
    room = tokens - sum(count(f" {each.sentence}") for each in hidden)
    sentences: list[list[str]] = [[] for _ in range(places)]
    for number, (place, city) in enumerate(zip(kinds, cities, strict=True)):
        spent = 0
        frames: list[str] = []
        while spent < room // places:
            frames = frames or rng.sample(_SENTENCES, len(_SENTENCES))
            sentence = _fill(frames.pop(), rng, place, city)
            spent += count(f" {sentence}")
            sentences[number].append(sentence)
    total = sum(map(len, sentences))
    for number, each in enumerate(hidden):
        at = int((number + rng.random()) * total / facts)
        for part in sentences:
            if at < len(part):
                part.insert(at, each.sentence)
                break
            at -= len(part)
    text = "\n\n".join(
        f"The {place} in {city}. {' '.join(part)}"
        for place, city, part in zip(kinds, cities, sentences, strict=True)
    )
    return Report(text, tuple(kinds), tuple(hidden))


def _fill(frame: str, rng: Random, place: str, city: str) -> str:
    """A sentence with all its gaps filled, each for itself."""
    while "{" in frame:
        before, _, rest = frame.partition("{")
        gap, _, after = rest.partition("}")
        word = {
            "place": lambda: place,
            "city": lambda: city,
            "other": lambda: rng.choice([each for each in CITIES if each != city]),
            "person": lambda: f"{rng.choice(FIRST_NAMES)} {invented_name(rng)}",
            "month": lambda: rng.choice(MONTHS),
            "year": lambda: str(rng.randrange(1880, 2020)),
            "thing": lambda: rng.choice(_THINGS),
            "colour": lambda: rng.choice(COLOURS),
            "few": lambda: str(rng.randrange(2, 10)),
            "many": lambda: str(rng.randrange(20, 400)),
        }[gap]()
        frame = f"{before}{word}{after}"
    return frame
