"""What is added to a matrix's product for the rows of one adapter: one technique a file."""
