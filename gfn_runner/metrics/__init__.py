"""Metrics: pure functions of samples; no model."""
