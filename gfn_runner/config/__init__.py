"""Validation of a composed config."""
