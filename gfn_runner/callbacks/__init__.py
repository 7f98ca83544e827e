"""Lightning callbacks that watch or steer training."""
