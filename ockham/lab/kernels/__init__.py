"""Every kernel at the shapes of a loaded model, beside what the machine can do at that moment."""
