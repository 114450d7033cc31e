"""Signals, logs, and how the ranks of a stage end."""
