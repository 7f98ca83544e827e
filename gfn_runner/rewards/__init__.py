"""Log-rewards: terms of a language model and constraints."""
