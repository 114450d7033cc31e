"""Data sets of the hub before a stage reads them."""

from __future__ import annotations

import datasets
from datasets.exceptions import DatasetsError
from datasets.inspect import SplitsNotFoundError
from huggingface_hub import HfApi

from configs.errors import UserError
from configs.schema import Source
from data.sources.reading import describe

SECONDS = 3.0
REFUSALS = (401, 403, 404)  # also of a private data set, to others


def hub_shows(source: Source) -> bool:
    """Whether the hub, or the cache of `datasets`, shows the data set now. If not, a stage may still load it.

    Raises:
        UserError: this account can read no such data set, or it has no such configuration or split.
    """
    if not _within_reach(source):
        return False
    folder = {"data_dir": source.data_dir} if source.data_dir else {}
    try:
        splits = datasets.get_dataset_split_names(
            source.path, source.name, revision=source.revision, **folder
        )
    except SplitsNotFoundError:  # only a download tells
        return True
    except (DatasetsError, FileNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"{describe(source)}: this account cannot read that from the hub: {reason:.400}. Correct the "
            "source, or log in with `hf auth login`. A local file's path must end in .jsonl, .json, .csv, "
            ".tsv or .parquet."
        ) from error
    except Exception:  # the hub's client raises those of several libraries
        return False
    wanted = [term.partition("[")[0].strip() for term in source.split.split("+")]
    if unknown := [name for name in wanted if name not in (*splits, "all")]:
        raise UserError(
            f"{describe(source)}: the data set has no split {unknown[0]}. Set `split` to one of "
            f"{', '.join(splits)}."
        )
    return True


def streamed(source: Source) -> Source:
    """The same source, read without a download of all of it."""
    return source.model_copy(update={"streaming": True})


def _within_reach(source: Source) -> bool:
    try:
        HfApi().dataset_info(source.path, revision=source.revision, timeout=SECONDS)
    except Exception as error:
        return getattr(getattr(error, "response", None), "status_code", None) in REFUSALS
    return True
