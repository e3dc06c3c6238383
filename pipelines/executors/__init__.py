"""Executors carry a plan out: sample ids and geometry in, uint8 (N, H, W, C) images out."""
