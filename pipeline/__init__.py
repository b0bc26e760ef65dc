"""Shards to trained weights to numbers: the stream, the engine, checkpoints, evaluation, report."""
