"""What single kinds of blocks are compiled to."""
