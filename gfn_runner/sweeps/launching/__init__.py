"""Runs of a sweep, started and waited for: in this process, on this machine, on a cluster."""
