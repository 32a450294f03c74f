"""The one loop, and what it turns on."""
