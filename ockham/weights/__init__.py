"""How linear layers' weights are stored and multiplied: one format a file."""
