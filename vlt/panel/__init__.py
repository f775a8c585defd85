"""A run to click through: the probe in a notebook, and a run as one file for a browser."""
