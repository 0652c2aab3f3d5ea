"""One module for each engine that cannot read the checkpoint as it is."""
