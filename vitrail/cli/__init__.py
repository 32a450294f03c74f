"""Words on a command line -> one call of a task."""
