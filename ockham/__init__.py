"""Ockham."""
