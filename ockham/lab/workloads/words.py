"""Text that workloads are made of: plain sentences and small functions, drawn from a generator."""

from __future__ import annotations

from random import Random

_PEOPLE = ("Ada", "Boris", "Chen", "Dora", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun", "Kira")
_PLACES = ("Lyon", "Oslo", "Quito", "Riga", "Seoul", "Tunis", "Umea", "Varna", "Xanten", "Zagreb")
_THINGS = ("bridge", "clock", "engine", "garden", "harbour", "library", "mill", "organ", "tower")
_ACTS = ("built", "bought", "drew", "found", "measured", "moved", "painted", "repaired", "sold")
_NOUNS = ("count", "items", "limit", "line", "price", "rate", "size", "step", "total", "weight")
_VERBS = ("add", "check", "collect", "filter", "merge", "read", "scale", "split", "sum", "update")
_QUESTIONS = ("Who {act} the {thing} in {place}?", "What happened to the {thing} of {place}?")


def sentence(rng: Random) -> str:
    """A statement of about a dozen tokens."""
    return (
        f"In {rng.randrange(1500, 2000)} {rng.choice(_PEOPLE)} {rng.choice(_ACTS)} the "
        f"{rng.choice(_THINGS)} in {rng.choice(_PLACES)} for {rng.randrange(10, 1000)} coins."
    )


def paragraph(rng: Random, sentences: int) -> str:
    """So many statements."""
    return " ".join(sentence(rng) for _ in range(sentences))


def question(rng: Random) -> str:
    """A question about what statements say."""
    return rng.choice(_QUESTIONS).format(
        act=rng.choice(_ACTS), thing=rng.choice(_THINGS), place=rng.choice(_PLACES)
    )


def function(rng: Random, lines: int = 6) -> str:
    """A Python function of about so many lines."""
    name = f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}"
    value, other = rng.sample(_NOUNS, 2)
    body = [f"def {name}_{rng.randrange(100)}({value}, {other}={rng.randrange(10)}):"]
    while len(body) < lines - 1:
        a, b = rng.sample((value, other), 2)
        body.append(
            rng.choice(
                (
                    f"    {a} = {a} + {rng.randrange(100)}",
                    f"    {a} = {a} * {b} - {rng.randrange(100)}",
                    f"    if {a} > {rng.randrange(100)}:\n        {b} = {a}",
                )
            )
        )
    body.append(f"    return {value}")
    return "\n".join(body) + "\n"
