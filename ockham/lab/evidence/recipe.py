"""Recipes of evidence, and where they are found: one for each technique."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ockham.core.errors import ConfigError
from ockham.core.registry import techniques
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.row import Row

Measure = Callable[[Bench], Row]
OF_NO_MODEL = "it is measured without a model: the lab's row is of any"
TRAINED = "what it needs was trained for the lab's models"
ENGINE = "engine"
"""The seam of what the engine does by itself, whatever techniques are chosen."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one technique is measured. `measure` None: it is what the others are compared with."""

    seam: str
    name: str
    summary: str
    measure: Measure | None
    only_lab: str = ""
    """Why it is measured on the lab model alone; "" where it is measured on any."""


_recipes: dict[tuple[str, str], Recipe] = {}


def evidence(
    seam: str, name: str, summary: str = "", only_lab: str = ""
) -> Callable[[Measure], Measure]:
    """Decorator: the recipe of one technique. The registry has the summary of what it knows.

    A technique may have more recipes, whose names begin like it: "draft_model-tree". `only_lab`
    says why it is measured on no other model than the lab's."""

    def take(measure: Measure) -> Measure:
        _recipes[seam, name] = Recipe(seam, name, summary, measure, only_lab)
        return measure

    return take


def counterfactual(seam: str, name: str) -> None:
    """A technique that does nothing: what others at its seam are measured against."""
    _recipes[seam, name] = Recipe(seam, name, "", None)


def recipes() -> list[Recipe]:
    """Every recipe: those of the engine first, then by seam and name as in the registry.

    Raises ConfigError for a registered technique that has none: nothing is claimed that no command
    measures.
    """
    found = [recipe for (seam, _), recipe in _recipes.items() if seam == ENGINE]
    for technique in techniques():
        recipe = _recipes.get((technique.seam, technique.name))
        if recipe is None:
            raise ConfigError(
                f"the technique {technique.name!r} at the seam {technique.seam!r} has no recipe of "
                "evidence in ockham/lab/evidence."
            )
        found.append(replace(recipe, summary=recipe.summary or technique.summary))
        found += [
            more
            for (seam, name), more in _recipes.items()
            if seam == technique.seam and name.startswith(f"{technique.name}-")
        ]
    return found


def recipe_of(name: str) -> Recipe:
    """The recipe of a technique by its name, or by 'seam/name' where two seams have the name.

    Raises ConfigError for an unknown or an ambiguous name.
    """
    known = recipes()
    found = [r for r in known if name in (r.name, f"{r.seam}/{r.name}")]
    if not found:
        raise ConfigError(
            f"there is no technique {name!r}; there are {', '.join(r.name for r in known)}."
        )
    if len(found) > 1:
        options = " or ".join(f"{recipe.seam}/{recipe.name}" for recipe in found)
        raise ConfigError(f"several techniques are called {name!r}; write {options}.")
    return found[0]
