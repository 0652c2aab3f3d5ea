"""How many completions, which branches live, when to stop: one technique a file."""
