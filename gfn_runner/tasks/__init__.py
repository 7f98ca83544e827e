"""Experiments: Lightning modules with data, posterior, answers, metrics."""
