"""How fast training, storing, loading and starting are: ratios within one run."""
