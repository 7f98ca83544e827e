"""Lightning loggers: ``metrics.jsonl`` and Weights & Biases."""
