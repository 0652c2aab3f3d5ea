"""Evidence for patterns of attention: what long texts cost when some heads leave keys out."""

from __future__ import annotations

from ockham.lab.evidence.recipe import counterfactual

counterfactual("pattern", "full")
