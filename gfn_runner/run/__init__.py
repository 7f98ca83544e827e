"""Parts of a run: its start or resumption, EM rounds, and final evaluation."""
