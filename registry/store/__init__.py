"""Bytes: files written so that a crash leaves the old or the new one, named by their content, checked when read."""
