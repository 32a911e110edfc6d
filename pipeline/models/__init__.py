"""The table of models, where they are, what they need."""
