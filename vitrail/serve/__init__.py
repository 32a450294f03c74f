"""A model behind an HTTP API, and one page."""
