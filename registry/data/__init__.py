"""Images: from files to batches of tensors."""
