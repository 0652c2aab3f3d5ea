"""What drafters remember of the tokens that pass by."""
