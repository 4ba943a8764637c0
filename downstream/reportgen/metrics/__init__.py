"""Metrics of generated reports, all offline; each is a function of sums over cases (`sums.py`)."""
