"""The small world, and the paper's recipe."""
