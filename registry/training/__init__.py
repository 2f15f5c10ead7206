"""Adding a task: data, the loop, checkpoints, evaluation, tracking."""
