"""The order and size of work in a step: one policy a file, behind `core.seams.Policy`."""
