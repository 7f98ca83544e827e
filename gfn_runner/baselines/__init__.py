"""Rows to compare a policy with."""
