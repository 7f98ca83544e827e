"""Posteriors: log-rewards as weighted sums of language-model terms and constraints."""
