"""Metrics of samples."""
