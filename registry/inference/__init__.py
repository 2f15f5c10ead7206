"""Using tasks: weights composed from the base, models ready to predict, plain checkpoints for others."""
