"""Lightning callbacks that monitor or control training."""
