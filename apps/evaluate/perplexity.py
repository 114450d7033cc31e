"""The likelihood of a text under a policy: what alignment costs elsewhere (the alignment tax)."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from apps.trained_run import LoadedPolicies
from configs.errors import UserError
from configs.regular_file import read_regular_file
from stages.maths.statistics import mean_with_interval
from stages.sampling.response_batch import response_batch, response_logprobs

WINDOW = 256  # tokens that are read at once; each window but its first token is predicted
MOST_WINDOWS = 256
AT_ONCE = 4


@torch.no_grad()
def nats_per_token(policies: LoadedPolicies, role: str, file: Path) -> dict[str, float]:
    """`nats` per token of the file's text with its 95 % interval over windows, and `perplexity`, exp(nats).

    The text is read in windows of `WINDOW` tokens, the first `MOST_WINDOWS` of them.

    Raises:
        UserError: the file is no text in UTF-8, or has fewer than two tokens.
    """
    ids = _ids(policies, file)
    windows = [ids[first : first + WINDOW] for first in range(0, len(ids), WINDOW)][:MOST_WINDOWS]
    windows = [window for window in windows if len(window) > 1]
    pad, device = policies.tokenizer.pad_token_id, policies.base.causal.device
    means: list[float] = []
    for first in range(0, len(windows), AT_ONCE):
        some = windows[first : first + AT_ONCE]
        batch = response_batch([w[:1] for w in some], [w[1:] for w in some], pad, device)
        logprobs = response_logprobs(policies.models, role, batch)
        means += [-float(row[mask].mean()) for row, mask in zip(logprobs, batch.mask, strict=True)]
    metrics = mean_with_interval("nats", means)
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
