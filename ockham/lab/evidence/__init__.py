"""Evidence: what each technique saves here, now, beside what its paper claims."""

from __future__ import annotations

# Importing them makes their recipes known.
from ockham.lab.evidence import (  # noqa: F401
    adapters,
    approximate,
    assigned_heads,
    blocks,
    choosers,
    completions,
    contexts,
    corpora,
    corrections,
    draft_models,
    drafts,
    engine,
    formats,
    gates,
    keeps,
    long_texts,
    mixes,
    pairs,
    patterns,
    pipelines,
    positions,
    predictions,
    programs,
    pruned,
    reuse,
    seams,
    searches,
    sleeping,
    sparse_patterns,
    states,
    threads,
    tiers,
    together,
    transforms,
    verifying,
    votes,
)
from ockham.lab.evidence.bench import Bench
from ockham.lab.evidence.recipe import Recipe, recipe_of, recipes
from ockham.lab.evidence.row import Row

__all__ = ["Bench", "Recipe", "Row", "recipe_of", "recipes"]
