"""The shared checkpoint in each engine's own format, written in that engine's environment."""
