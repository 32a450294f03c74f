"""Everybody's checkpoints <-> ours: sources, dialects, and a report of what happened to every tensor."""
