"""Compares policies on the same prompts with the same noise: judges, win rates, KL, variety, cost."""
