"""Where metrics and samples go: JSON lines and W&B."""
