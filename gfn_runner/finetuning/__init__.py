"""Modules that train the adapter by other means than a balance objective, to be compared with."""
