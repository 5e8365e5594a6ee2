"""Training: configuration, learning rates, the loop, its guard, its checkpoints and its record."""
