"""Pixels -> tokens -> features -> logits.

Axes have one letter everywhere: B batch; C, H, W channels, height and width of an image; h, w rows
and columns of the patch grid; P side of a patch; N tokens, n a run of them, T those before the patches; D width;
K heads; L layers; F length of the features. A token sequence is (B, N, D).
"""
