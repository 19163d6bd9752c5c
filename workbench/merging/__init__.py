"""Merging checkpoints: adapters read as if folded, tensors as a stream, results as files."""
