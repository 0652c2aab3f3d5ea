"""Pages of state beside the pool: in memory, on disk, named by what they hold."""
