"""Dead letters: how they are written, and how they are read back."""
