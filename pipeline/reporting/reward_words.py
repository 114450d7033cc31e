"""What PPO optimised, in words: the reward model's score, a function's, or a sum of several terms."""

from __future__ import annotations

from configs.schema import Ppo, Reward


def is_reward_model(ppo: Ppo) -> bool:
    """Whether the reward is the reward model's score and nothing else."""
    return ppo.sole_term is not None and ppo.sole_term.source == "rm"


def reward_words(ppo: Ppo) -> str:
    """`the reward model's score`, `the reward \"length\" (my:length)`, or a sum of such terms."""
    if ppo.sole_term:
        return _term(ppo.sole_term)
    return "the sum of " + " and ".join(f"{term.weight:g} times {_term(term)}" for term in ppo.rewards)


def reward_label(ppo: Ppo) -> str:
    """A short form for an axis."""
    if not ppo.sole_term:
        return "reward, the sum of its terms"
    return "reward model's score" if is_reward_model(ppo) else f"reward {ppo.sole_term.label}"


def _term(term: Reward) -> str:
    if term.source == "rm":
        return "the reward model's score" + (f", called {term.name}" if term.name else "")
    return f'the reward "{term.label}" ({term.source})'
