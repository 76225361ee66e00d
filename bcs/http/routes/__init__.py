"""The routes: each parses a request, and renders an answer."""
