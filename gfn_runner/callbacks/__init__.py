"""Callbacks: each watches or steers training through Lightning hooks, and nothing else."""
