"""Dead letters, looked at and put back by an operator."""
