"""Sampling from a policy and measuring the samples."""
