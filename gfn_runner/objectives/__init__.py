"""φ and losses on its pairs."""
