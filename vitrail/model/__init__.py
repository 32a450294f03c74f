"""Pixels -> tokens -> features -> logits.

Axes have one letter everywhere: B batch; C, H, W channels, height and width of an image; h, w rows
and columns of the patch grid; N tokens; D width; K heads; L layers. A token sequence is (B, N, D).
"""
