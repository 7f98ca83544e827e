"""Sweeps: planning, launching and recording many runs."""
