"""Rows become token ids, padded batches, and the batch of each step."""
