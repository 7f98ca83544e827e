"""The runs of a sweep, started and waited for: here, on this machine, or on a cluster."""
