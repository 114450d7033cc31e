"""The sinks of metrics and samples: JSON lines and W&B."""
