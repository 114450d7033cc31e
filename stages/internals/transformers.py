"""Private interfaces of transformers."""

from __future__ import annotations

from transformers import PreTrainedModel


def attention_implementation(model: PreTrainedModel) -> str:
    """The attention that is in use, such as sdpa. The public config holds what the user chose."""
    return str(model.config._attn_implementation)


def is_recurrent(model: PreTrainedModel) -> bool:
    """Whether layers carry a state from token to token, as in Mamba. No public attribute says so."""
    return bool(model._is_stateful)


def commit_hash(model: PreTrainedModel) -> str | None:
    """The hub commit that the model was loaded from; None for a folder. No public attribute says so."""
    commit: str | None = vars(model.config).get("_commit_hash")
    return commit
