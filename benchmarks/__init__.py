"""Runnable measurements; their outputs are committed under benchmarks/results."""
