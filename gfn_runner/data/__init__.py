"""Conditions, trajectories and batches; readers of users' files; the replay buffer."""
