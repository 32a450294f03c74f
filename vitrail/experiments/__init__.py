"""The article's claims and the papers' figures, each a grid of runs with a verdict: ``vitrail reproduce NAME``."""
