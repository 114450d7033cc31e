"""Private interfaces of transformers."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import cached_file


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


def find_file(source: str, name: str, revision: str | None) -> Path | None:
    """The file `name` of a folder or hub model, where transformers reads it; None if there is none.

    The public arguments raise an error for a file that a model does not have.
    """
    absent_is_fine = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    file = cached_file(source, name, revision=revision, **absent_is_fine)
    return None if file is None else Path(file)
