"""Files -> batches: what the user names becomes samples, safely read and preprocessed.

Nothing is imported here, so that listing a folder (``vitrail.data.sources``) loads no torch.
"""
