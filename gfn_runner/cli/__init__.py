"""The command line: Hydra's entry point, suggestions, resuming, modes."""
