"""Everything that measures: kernels beside the limits of the machine."""
