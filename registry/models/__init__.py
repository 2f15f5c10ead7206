"""timm's models: building them, loading weights into them, taking their measure."""
