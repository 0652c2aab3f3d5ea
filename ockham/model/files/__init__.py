"""Files of strangers, read with bounds and checked as they are read; what they mean for a model is
not known here."""
