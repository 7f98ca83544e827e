"""gfn_runner: fine-tune language models to sample from posteriors with GFlowNet objectives."""

__version__ = "0.1.0"
