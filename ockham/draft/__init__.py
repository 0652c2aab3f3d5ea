"""Tokens to verify in the next step: one drafter a file, behind `core.seams.Drafter`."""
