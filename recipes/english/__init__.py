"""What the English tasks are made of, and the card of the model that they judge."""
