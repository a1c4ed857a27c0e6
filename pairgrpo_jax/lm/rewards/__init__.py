"""Who judges: reward models, reward functions, judges."""
