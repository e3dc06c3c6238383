"""Batches + module -> checkpoints + metrics: the training loop and what it leaves on disk."""
