"""Which state stays, and in what precision: one technique a file, behind `core.seams.Keep`."""
