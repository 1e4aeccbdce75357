"""Training: rows in a repeatable order, the loop, its checkpoints."""
