"""Which parts of the program run for a row: one technique a file."""
