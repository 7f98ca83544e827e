"""Launching the runs of a sweep: in this process, on this machine, or on a cluster."""
