"""Runtime utilities: files, terminal, seeds, locks and progress lines."""
