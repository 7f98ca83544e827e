"""The processes of one run: how they start, what they share."""
