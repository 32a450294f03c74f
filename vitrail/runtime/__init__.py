"""Run a trained model fast."""
