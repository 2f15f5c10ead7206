"""What exists: bases, tasks, artifacts, runs, budgets. SQL only; nothing here needs torch."""
