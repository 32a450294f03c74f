"""What others computed, shown to people."""
