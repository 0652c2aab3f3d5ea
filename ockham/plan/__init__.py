"""Which configuration serves a workload best: predicted first, then measured."""
