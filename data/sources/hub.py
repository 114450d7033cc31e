"""Data sets of the hub before a stage reads them."""

from __future__ import annotations

from huggingface_hub import HfApi

from configs.errors import UserError
from configs.schema import Source

SECONDS = 3.0
REFUSALS = (401, 403, 404)  # also of a private data set, to others


def hub_shows(source: Source) -> bool:
    """Whether the hub shows the data set now. It does not if it is not within reach.

    Raises:
        UserError: the hub answers that there is no such data set or revision, or none for this account.
    """
    try:
        HfApi().dataset_info(source.path, revision=source.revision, timeout=SECONDS)
    except Exception as error:  # the hub's client raises those of several libraries
        if getattr(getattr(error, "response", None), "status_code", None) not in REFUSALS:
            return False
        revision = f" and revision {source.revision}" if source.revision else ""
        raise UserError(
            f"{source.path}: this account can read no data set of the hub with this name{revision}. Correct "
            "it, or log in with `hf auth login`. A local file's path must end in .jsonl, .json, .csv, .tsv "
            "or .parquet."
        ) from error
    return True


def streamed(source: Source) -> Source:
    """The same source, read without a download of all of it."""
    return source.model_copy(update={"streaming": True})
