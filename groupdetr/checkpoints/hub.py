"""Models on the Hugging Face hub: their names, and their files in the cache of huggingface-hub.

The hub is asked only for a model that the user has named. If it cannot be reached, this is known
after a moment, and the error says how to bring the files.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from groupdetr.errors import WeightsError
from groupdetr.files.missing import similar_path

# A model on the hub: its owner, its name, and the revision (a branch, a tag or a commit), if any.
FORM = re.compile(
    r"(?P<id>(?P<owner>[a-z0-9][\w-]*)/[a-z0-9][\w.-]*)(?:@(?P<revision>[a-z0-9][\w./+-]*))?",
    re.IGNORECASE | re.ASCII,
)
MAX_ID_LENGTH = 96  # characters; the hub has none that is longer
# Endings that say that an argument is the path of a file. Names of models have dots, too.
FILE_ENDINGS = frozenset(
    (
        *(".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".onnx", ".json", ".yaml"),
        *(".yml", ".csv", ".txt", ".zip", ".tar", ".gz", ".jpg", ".jpeg", ".png", ".html", ".py"),
    )
)
# What is downloaded of a model: first these files and, if it has none of them, the others.
SAFE_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
PICKLED_FILES = ("config.json", "*.bin", "*.bin.index.json", "*.pth", "*.pt")
WEIGHTS_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
_NOT_HERE = "there is no such path, and no such model in the cache of this machine"
CONNECT_SECONDS = 3  # after which a hub that does not answer counts as unreachable
RETRY_SECONDS = 30  # until a hub that was unreachable is tried again


@dataclass(frozen=True)
class HubModel:
    """A model on the hub. ``revision`` is a branch, a tag or a commit; None: the main branch."""

    id: str  # owner/name
    revision: str | None = None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def folder_name(self) -> str:
        """The model as the name of a folder or a file, such as owner--name."""
        return re.sub(r"[/@]", "--", str(self))


def model_named(source: str | os.PathLike[str]) -> HubModel | None:
    """Return the model on the hub that an argument names, None if the argument is a path.

    An existing path is always a path. An argument with a revision, such as ``owner/name@main``, is
    a model otherwise. Without one, it is a path that was mistyped if there is a folder of the
    owner's name, if a similar path exists, or if it has the ending of a file.
    """
    text = source.as_posix() if isinstance(source, PurePath) else os.fspath(source)
    match = FORM.fullmatch(text)
    if match is None or len(match["id"]) > MAX_ID_LENGTH or os.path.lexists(text):
        return None
    if match["revision"] is None:
        is_file = PurePath(text).suffix.lower() in FILE_ENDINGS
        if is_file or os.path.isdir(match["owner"]) or similar_path(text):
            return None
    elif ".." in match["revision"]:
        return None
    return HubModel(match["id"], match["revision"])


def name_with_revision(source: str | os.PathLike[str]) -> str:
    """Return what to type for a model on the hub that was taken for a path, "" if it cannot be one.

    >>> name_with_revision("runs/mine")
    'runs/mine@main'
    """
    text = source.as_posix() if isinstance(source, PurePath) else os.fspath(source)
    match = FORM.fullmatch(text)
    if match is None or match["revision"] or PurePath(text).suffix.lower() in FILE_ENDINGS:
        return ""
    return f"{text}@main"


def download(model: HubModel) -> Path:
    """Return the folder of a model in the cache of huggingface-hub, or its only weights file.

    Files that are not in the cache are downloaded: config.json and the weights, in safetensors if
    the model has them. A folder without config.json that has one weights file is that file.
    `WeightsError` if there is no such model, or if it is neither in the cache nor reachable.
    """
    with offline_if_unreachable() as reachable:
        for patterns in (SAFE_FILES, PICKLED_FILES):
            folder = _snapshot(model, patterns, reachable)
            if not folder.is_dir():  # The model has none of these files.
                continue
            names = sorted(entry.name for entry in folder.iterdir())
            weights = [name for name in names if name.endswith(WEIGHTS_ENDINGS)]
            if not weights:
                continue
            if not reachable and not _set_by_user() and model not in _warned:
                _warned.add(model)
                logging.getLogger("groupdetr").warning(
                    f"the Hugging Face hub cannot be reached: {model} is read from the cache"
                )
            if "config.json" not in names and len(weights) == 1:
                return folder / weights[0]
            return folder
    if not reachable:
        raise missing(model, _NOT_HERE)
    raise WeightsError(
        "this model on the Hugging Face hub has no weights that can be read",
        str(model),
        f"pass another one; its files must end in {', '.join(WEIGHTS_ENDINGS)}",
    )


def _snapshot(model: HubModel, patterns: tuple[str, ...], reachable: bool) -> Path:
    """Return the folder of the cache with the files of a model that fit the patterns."""
    # Imported here: it takes a second, and a local file does not need it.
    from huggingface_hub import errors, snapshot_download

    where = f"{model} on the Hugging Face hub"
    try:
        folder = snapshot_download(
            model.id,
            revision=model.revision,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*"],  # the training states and other versions in its folders
        )
    except errors.GatedRepoError as error:
        raise WeightsError(
            "the owner of this model gives its files only to users who were accepted",
            where,
            f"ask for them at {address_of(model)}, then log in: hf auth login",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(
            f"this model has no revision {model.revision!r}",
            where,
            f"choose one of its branches, tags or commits: {address_of(model)}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            "there is no such path, and no such model on the Hugging Face hub, or it is private",
            str(model),
            "check the path or the name; for a private model, log in first: hf auth login",
        ) from error
    except Exception as error:
        if not is_hub_error(error):
            raise
        if not reachable:
            raise missing(model, _NOT_HERE) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"the weights could not be downloaded: {reason}",
            where,
            "try again later, or pass a local file or folder",
        ) from error
    return Path(folder)


def is_hub_error(error: BaseException) -> bool:
    """Return whether an exception is one of huggingface-hub, of HTTP, or of the system.

    The base class of the errors of HTTP depends on the version of huggingface-hub, which names it.
    """
    from huggingface_hub import errors

    base = getattr(errors, "HTTPError", OSError)
    return isinstance(error, OSError | errors.EntryNotFoundError | errors.HfHubHTTPError | base)


def missing(model: HubModel, what: str, remedy: str = "") -> WeightsError:
    """Return the error for files that are neither in the cache nor can be downloaded.

    ``what`` says whose files they are. ``remedy`` is another way out, if there is one.
    """
    from huggingface_hub import constants

    reason = f"the Hugging Face hub ({constants.ENDPOINT}) cannot be reached"
    first = "go online once"
    if _set_by_user():
        reason = "HF_HUB_OFFLINE is set, so nothing is downloaded"
        first = "unset HF_HUB_OFFLINE, to download them"
    revision = "" if model.revision is None else f" --revision {model.revision}"
    cached = f"models--{model.id.replace('/', '--')}"
    remedies = [
        f"{first}; or on a machine with a network: hf download {model.id}{revision}, and "
        f"copy the folder {cached} of its cache to the cache of this machine (HF_HUB_OFFLINE=1 "
        "then reads it without a network)"
    ]
    remedies += [remedy] if remedy else []
    return WeightsError(
        f"{what}, and {reason}",
        f"{model.id}, revision {model.revision or 'main'}; cache: {constants.HF_HUB_CACHE}",
        "; or ".join(remedies),
    )


def address_of(model: HubModel) -> str:
    """Return the address of the page of a model."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model.id}"


# The network

# What HF_HUB_OFFLINE was before `offline_if_unreachable` changed it.
_user_choice: list[bool] = []
# Addresses that did not answer, and until when they are not tried again.
_unreachable: dict[str, float] = {}
# Models that were read from the cache because the hub could not be reached; each is said once.
_warned: set[HubModel] = set()


def _set_by_user() -> bool:
    """True if the user has set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return _user_choice[0] if _user_choice else bool(constants.HF_HUB_OFFLINE)


@contextmanager
def offline_if_unreachable() -> Iterator[bool]:
    """Let huggingface-hub use its cache alone if the hub cannot be reached, and yield if it can be.

    Otherwise it tries each file several times, with pauses that add up to a minute.
    """
    from huggingface_hub import constants

    before = bool(constants.HF_HUB_OFFLINE)
    reachable = not before and is_reachable()
    _user_choice.append(before)
    constants.HF_HUB_OFFLINE = not reachable
    try:
        yield reachable
    finally:
        constants.HF_HUB_OFFLINE = before
        _user_choice.pop()


def is_reachable() -> bool:
    """Return whether the hub answers a request, over the proxy if there is one.

    If it does not, it is not asked again for some seconds, because a command asks several times.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    endpoint = constants.ENDPOINT
    if time.monotonic() < _unreachable.get(endpoint, 0):
        return False
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=CONNECT_SECONDS)
        except Exception as error:  # those of the HTTP library, which depends on the version
            logging.getLogger("groupdetr").debug(f"{endpoint} does not answer: {error}")
        else:
            answered.set()

    # A thread, because no timeout applies to the search for the address of a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not answered.is_set():
        _unreachable[endpoint] = time.monotonic() + RETRY_SECONDS
    return answered.is_set()
