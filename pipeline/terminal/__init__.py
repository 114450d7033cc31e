"""Terminal output: progress, numbers, `tristage plan` and `tristage status`."""
