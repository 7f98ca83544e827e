"""The command line: composing, resuming, modes."""
