"""Datasets: index builders that read tables and directory names, never pixels; one file per owner."""
