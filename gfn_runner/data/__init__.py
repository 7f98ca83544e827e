"""Conditions, trajectories, file readers and the replay buffer."""
