"""The shortest experiment that is valid."""

MINIMAL = """
name: trial
base: {model: tiny-random}
data:
  sft: {path: sft.jsonl}
  rm: {path: rm.jsonl}
  ppo: {path: ppo.jsonl}
"""
