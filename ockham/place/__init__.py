"""Where weights, state and requests live: one technique a file."""
