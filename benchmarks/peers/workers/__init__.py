"""One engine behind one small protocol: each module here runs in that engine's own environment."""
