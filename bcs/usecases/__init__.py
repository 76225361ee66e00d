"""The steps of each request in their order, without HTTP."""
