"""What PPO optimised, in words: the reward model's score, a function's, or a sum of several terms."""

from __future__ import annotations

from configs.schema import Ppo, Reward


def is_reward_model(ppo: Ppo) -> bool:
    """Whether the reward is the reward model's score and nothing else."""
    return [(term.source, term.weight) for term in ppo.rewards] == [("rm", 1.0)]


def reward_words(ppo: Ppo) -> str:
    """`the reward model's score`, `the reward \"length\" (my:length)`, or a sum of such terms."""
    if len(ppo.rewards) == 1 and ppo.rewards[0].weight == 1:
        return _term(ppo.rewards[0])
    return "the sum of " + " and ".join(f"{term.weight:g} times {_term(term)}" for term in ppo.rewards)


def reward_label(ppo: Ppo) -> str:
    """A short form for an axis."""
    if len(ppo.rewards) > 1 or ppo.rewards[0].weight != 1:
        return "reward, the sum of its terms"
    return "reward model's score" if ppo.uses_reward_model else f"reward {ppo.rewards[0].label}"


def _term(term: Reward) -> str:
    if term.source == "rm":
        return "the reward model's score" + (f", called {term.name}" if term.name else "")
    return f'the reward "{term.label}" ({term.source})'
