"""Numbers about a trained model, from arrays or from a function images -> logits or features; no task, no files."""
