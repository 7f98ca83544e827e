"""Many runs as one sweep: what was planned and what became of it, and the clusters that run it."""
