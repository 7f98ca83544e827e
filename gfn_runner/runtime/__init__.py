"""Files, terminal, seeds, locks, status lines."""
