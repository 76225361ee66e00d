"""What happens for a caller, in its order, without HTTP."""
