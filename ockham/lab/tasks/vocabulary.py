"""The words that items are made of."""

from __future__ import annotations

from random import Random


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


# One token each in the lab model's tokenizer, with a space before them or without.
ADJECTIVES = words(
    """abstract active clear complete current empty encoded final first full initial last local long
    main multi next normal open quoted safe simple specific standard strict super valid visible"""
)

NOUNS = words(
    """action address anchor archive argument attribute base block body buffer button byte callback
    canvas char child children chunk code codec color column command content context copy data date
    dialog digits document domain element entry error event field file flag font form frame future
    group handle handler header height host image index instance item keyword label level library
    limit line link loader logger loop mark master member menu message method mode module name node
    offset option output package parameter parent parser part pattern place platform point position
    prefix process queue release response result root screen script seconds sequence server sign
    socket source space stack state status stream string system target text theme thread time title
    token trace tree user value variable version widget width window word year"""
)

CITIES = words(
    """Athens Berlin Boston Cairo Delhi Dublin Geneva Havana Kyoto Lima Lisbon London Madrid Milan
    Moscow Naples Oslo Paris Prague Riga Rome Seoul Sydney Tokyo Turin Vienna Warsaw Zurich"""
)

JOBS = words(
    """actor baker banker cook doctor driver farmer guard judge lawyer miner nurse painter pilot
    poet sailor singer smith tailor teacher waiter writer"""
)

ANIMALS = words("bird cat cow dog donkey duck fish goat goose horse lizard mouse parrot pig rabbit")

RELATIONS = words("boss brother cousin friend neighbour sister teacher uncle")

_ONSETS = words("b br d dr f g gr k kl l m n p r s st t tr v z")
_VOWELS = words("a e i o u")
_ENDS = ("", "n", "l", "r", "s", "m", "x")


def invented_name(rng: Random) -> str:
    """A name of two or three syllables that means nothing, such as Drobel."""
    syllables = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))
    )
    return (syllables + rng.choice(_ENDS)).capitalize()
