"""The routes: each parses a request, and renders a response."""
