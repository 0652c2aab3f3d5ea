"""Which state need not be computed again: one technique a file, behind `core.seams.Reuse`."""
