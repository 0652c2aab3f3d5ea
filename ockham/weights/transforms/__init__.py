"""What rewrites a checkpoint's weights before they are packed: one technique a file."""
