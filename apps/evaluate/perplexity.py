"""The likelihood of a text under a policy: what alignment costs elsewhere (the alignment tax)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from apps.likelihood import token_logprobs
from apps.trained_run import LoadedPolicies
from configs.errors import UserError
from configs.regular_file import read_regular_file
from stages.maths.statistics import RESAMPLES

WINDOW = 256  # tokens that are read at once; each window but its first token is predicted
MOST_WINDOWS = 256
AT_ONCE = 4


def read_text(file: Path) -> str:
    """The text in a file; raises UserError if it is none in UTF-8."""
    try:
        return read_regular_file(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--text: {file!s:.200}: not a text in UTF-8 ({error!s:.100}). Name another file."
        ) from None


def windows_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The text in windows of `WINDOW` tokens, the first `MOST_WINDOWS` of them.

    Raises:
        UserError: it has fewer than two tokens.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise UserError("--text: it has fewer than two tokens. Name a longer text.")
    windows = [ids[first : first + WINDOW] for first in range(0, len(ids), WINDOW)][:MOST_WINDOWS]
    return [window for window in windows if len(window) > 1]


def nats_per_token(policies: LoadedPolicies, role: str, windows: Sequence[list[int]]) -> dict[str, float]:
    """`perplexity` of a text under a policy, the exponential of its mean `nats` per token.

    Both have a 95 % bootstrap interval over windows; `_n` is the number of these.
    """
    pairs = [(window[:1], window[1:]) for window in windows]
    pad, device = policies.tokenizer.pad_token_id, policies.base.causal.device
    logprobs = token_logprobs(policies.models, role, pairs, pad, device, AT_ONCE)
    sums, counts = np.array([-sum(row) for row in logprobs]), np.array([len(row) for row in logprobs])
    picks = np.random.default_rng(0).integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    nats = {"": float(sums.sum() / counts.sum()), "_low": float(low), "_high": float(high)}
    return (
        {f"nats{end}": value for end, value in nats.items()}
        | {f"perplexity{end}": math.exp(value) for end, value in nats.items()}
        | {"nats_n": len(sums), "perplexity_n": len(sums)}
    )


def note_of(file: Path, windows: Sequence[list[int]]) -> str:
    """What the perplexity is of, in words."""
    tokens = sum(map(len, windows))
    most = f", the most that is read: {MOST_WINDOWS} windows" if len(windows) == MOST_WINDOWS else ""
    return (
        f"Perplexity: of the first {tokens:,} tokens of {file.name}{most}. Each window of {WINDOW} tokens is "
        "read by itself. The interval is over windows."
    )
