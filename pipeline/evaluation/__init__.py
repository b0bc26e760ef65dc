"""The evaluations of `python -m pipeline.evaluate`, one module each, and what they share."""
