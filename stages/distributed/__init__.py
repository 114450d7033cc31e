"""Ranks: the process group, collectives, and whole tensors under ZeRO-3."""
