"""From rows to token ids and padded batches, and the choice of the batch of each step."""
