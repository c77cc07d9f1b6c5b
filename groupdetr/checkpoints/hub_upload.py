"""Uploads a model to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from groupdetr.checkpoints.hub import (
    FORM,
    MAX_ID_LENGTH,
    HubModel,
    address_of,
    is_hub_error,
    is_reachable,
)
from groupdetr.errors import UsageError
from groupdetr.version import __version__


def model_to_push(text: str) -> HubModel:
    """Return the model that is to be published as owner/name. `UsageError` for another text."""
    match = FORM.fullmatch(text)
    if match is None or match["revision"] is not None or len(text) > MAX_ID_LENGTH:
        raise UsageError(
            "this is not the name of a model on the Hugging Face hub",
            text,
            "write OWNER/NAME: your user name or organisation, and a name of letters, digits, "
            "hyphens, dots and underscores",
        )
    return HubModel(match["id"])


def expect_login() -> None:
    """Raise `UsageError` unless the hub can be reached and somebody is logged in on this machine.

    Whether the login is valid is known when the hub is asked for something.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded",
            constants.ENDPOINT,
            "unset it, or write the files to a folder: --out FOLDER",
        )
    if get_token() is None:
        raise UsageError(
            "nobody is logged in to the Hugging Face hub",
            constants.ENDPOINT,
            "log in: hf auth login (or set HF_TOKEN); or write the files to a folder: --out FOLDER",
        )
    if not is_reachable():
        raise UsageError(
            "the Hugging Face hub cannot be reached, so nothing can be uploaded",
            constants.ENDPOINT,
            "go online; or write the files to a folder: --out FOLDER",
        )


def upload(folder: Path, files: Sequence[str], model: HubModel, private: bool) -> str:
    """Upload the ``files`` of a folder in one commit, and return the address of the commit.

    The model is created unless it exists. `UsageError` if the hub refuses it, or if a model that is
    to be ``private`` exists and is public: then nothing is uploaded.
    """
    from huggingface_hub import HfApi, errors

    api = HfApi(library_name="groupdetr", library_version=__version__)
    try:
        api.create_repo(model.id, private=private or None, exist_ok=True)
        if private and not api.model_info(model.id).private:
            raise UsageError(
                "this model exists on the hub, and everybody can see it",
                address_of(model),
                "make it private in its settings there, choose another name, or leave out "
                "--private",
            )
        commit = api.upload_folder(
            repo_id=model.id,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message=f"Upload a detector with groupdetr {__version__}",
        )
    except Exception as error:
        if isinstance(error, UsageError) or not is_hub_error(error):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_refused = status in (401, 403) or isinstance(error, errors.RepositoryNotFoundError)
        remedy = "try again later, or write the files to a folder: --out FOLDER"
        if is_refused:
            owner = model.id.partition("/")[0]
            remedy = (
                f"log in as {owner}, or as a member of it, with a token that may write: hf auth "
                "login"
            )
        raise UsageError(
            f"the model could not be uploaded: {lines[0]}", address_of(model), remedy
        ) from error
    return str(commit.commit_url)
