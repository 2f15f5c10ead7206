"""One file a revision, r0001 upwards."""
