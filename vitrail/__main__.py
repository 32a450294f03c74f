"""``python -m vitrail``: the command, where its script is not on the path."""

from vitrail.cli.main import main

if __name__ == "__main__":
    main()
