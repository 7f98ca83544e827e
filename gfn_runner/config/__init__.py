"""Schemas of a run and their validation."""
