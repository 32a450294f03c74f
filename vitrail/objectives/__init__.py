"""What is learned: each objective one file."""
