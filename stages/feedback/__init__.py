"""Scores of answers: reward model, labellers, functions, endpoints."""
