"""Upload an export to a model hub, if the user asks for it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from configs.errors import UserError


def push(folder: Path, repository: str) -> str:
    """Upload the folder to `repository`, which is created private if it is not there.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or does not accept the upload. The folder stays.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Export of Tristage"
        )
    except Exception as error:  # the hub's client raises those of several libraries
        reason = " ".join(str(error).split())
        raise UserError(
            f"--push {repository}: {reason:.300}. The export is complete in {folder}. Log in with `hf auth "
            f"login` or HF_TOKEN, then push it: hf upload {repository} {folder}"
        ) from None
    return str(commit.commit_url)
