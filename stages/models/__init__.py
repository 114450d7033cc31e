"""The base model, the roles on it, and their files."""
