"""State: keys and values in pages, shared and copied on write; what is reused and what is kept."""
