"""Answers of a run's policies, token by token, and their scores. What a chat and a server have in common."""
