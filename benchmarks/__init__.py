"""Measurements, side by side in one run: ratios, medians and spreads, never a timed test."""
