"""The likelihood of a text under a policy: what alignment costs elsewhere (the alignment tax)."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from apps.likelihood import token_logprobs
from apps.trained_run import LoadedPolicies
from configs.errors import UserError
from configs.regular_file import read_regular_file
from stages.maths.statistics import mean_with_interval

WINDOW = 256  # tokens that are read at once; each window but its first token is predicted
MOST_WINDOWS = 256
AT_ONCE = 4


def nats_per_token(policies: LoadedPolicies, role: str, file: Path) -> dict[str, float]:
    """`nats` per token of the file's text with its 95 % interval over windows, and `perplexity`, exp(nats).

    The text is read in windows of `WINDOW` tokens, the first `MOST_WINDOWS` of them.

    Raises:
        UserError: the file is no text in UTF-8, or has fewer than two tokens.
    """
    ids = _ids(policies, file)
    windows = [ids[first : first + WINDOW] for first in range(0, len(ids), WINDOW)][:MOST_WINDOWS]
    windows = [window for window in windows if len(window) > 1]
    pairs = [(window[:1], window[1:]) for window in windows]
    pad, device = policies.tokenizer.pad_token_id, policies.base.causal.device
    logprobs = token_logprobs(policies.models, role, pairs, pad, device, AT_ONCE)
    metrics = mean_with_interval("nats", [-fmean(row) for row in logprobs])
    return metrics | {"perplexity": math.exp(metrics["nats"])}


def _ids(policies: LoadedPolicies, file: Path) -> list[int]:
    try:
        text = read_regular_file(file).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--text: {file!s:.200}: not a text in UTF-8 ({error!s:.100}). Name another file."
        ) from None
    ids: list[int] = policies.tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2:
        raise UserError(f"--text: {file!s:.200}: it has fewer than two tokens. Name a longer text.")
    return ids
