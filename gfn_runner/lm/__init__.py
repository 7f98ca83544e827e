"""Language models: load, sample, score."""
