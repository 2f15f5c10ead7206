"""Methods side by side on small tasks that are made on the spot; see benchmarks/README.md."""
