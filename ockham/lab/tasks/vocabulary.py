"""The words that items are made of."""

from __future__ import annotations

from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ADJECTIVES = _words(
    """amber big black blue bold brave brown calm clean clear cold dark deep dry early empty fair
    fast fine flat free fresh full gold good grand gray green happy hard heavy high hot kind
    large late light little long loud low new nice old open pale pink plain poor proud pure quick
    quiet rare red rich round safe sharp short shy silver slow small soft solid strong sweet tall
    thin tiny true warm weak white wide wild wise yellow young"""
)

NOUNS = _words(
    """apple arch ball bank bear bell bird boat bone book bottle bowl box branch bread bridge brush
    cake camp candle card castle cat chain chair clock cloud coat coin corn crow cup deer desk
    dog door drum duck eagle egg field fish flag flower fork fox frog garden gate glass goat
    grape hall hammer hat hill horse house island jar key king kite knife ladder lake lamp leaf
    lemon letter lion mill mirror moon mouse nail nest oak onion oven owl paper path pear
    pen piano pig pipe plane plate pond queen rabbit rain ring river road rock roof rope rose
    sail salt sand school seed sheep ship shoe shop snake snow spoon star stone storm sun swan
    table tower town train tree truck valley wall watch wave well wheel wind wolf wood"""
)

CITIES = _words(
    """Athens Berlin Boston Cairo Delhi Dublin Geneva Havana Kyoto Lima Lisbon London Madrid Milan
    Moscow Naples Oslo Paris Prague Riga Rome Seoul Sydney Tokyo Turin Vienna Warsaw Zurich"""
)

JOBS = _words(
    """actor baker banker cook doctor driver farmer guard judge lawyer miner nurse painter pilot
    poet sailor singer smith tailor teacher waiter writer"""
)

ANIMALS = _words(
    "bird cat cow dog donkey duck fish goat goose horse lizard mouse parrot pig rabbit"
)

RELATIONS = _words("boss brother cousin friend neighbour sister teacher uncle")

_ONSETS = _words("b br d dr f g gr k kl l m n p r s st t tr v z")
_VOWELS = _words("a e i o u")
_ENDS = ("", "n", "l", "r", "s", "m", "x")


def invented_name(rng: Random) -> str:
    """A name of two or three syllables that means nothing, such as Drobel."""
    syllables = "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))
    )
    return (syllables + rng.choice(_ENDS)).capitalize()
