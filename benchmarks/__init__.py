"""Measurements that back what the documentation claims; results are committed under ``results/``."""
