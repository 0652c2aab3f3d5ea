"""What several searches are made of."""
