"""What a process needs around it: files, terminal, seeds, status lines."""
