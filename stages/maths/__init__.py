"""Pure functions of tensors and numbers: losses, advantages, statistics."""
