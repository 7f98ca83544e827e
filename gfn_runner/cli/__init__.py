"""The command line: Hydra's entry point, suggestions for typos, resuming, and modes."""
