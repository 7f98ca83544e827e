"""Where a run starts, rounds of EM, final evaluation."""
