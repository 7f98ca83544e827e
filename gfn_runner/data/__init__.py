"""Conditions, trajectories, readers, the replay buffer."""
