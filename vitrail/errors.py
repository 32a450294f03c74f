"""The one exception a person is meant to read."""


class UserError(Exception):
    """Something the caller can mend: one sentence with the cause and the remedy.

    The command line prints the sentence and exits with code 2; nothing half-written stays behind.
    """
