"""Evidence for gates: what it saves to run a part of the model, and what it changes."""

from __future__ import annotations

from ockham.lab.evidence.recipe import counterfactual

counterfactual("gate", "whole")
