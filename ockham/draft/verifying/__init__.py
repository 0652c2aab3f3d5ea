"""When a drafted token is accepted: one technique a file."""
