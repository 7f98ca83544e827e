"""Loggers: metrics.jsonl and W&B."""
