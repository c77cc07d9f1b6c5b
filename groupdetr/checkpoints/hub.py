"""Models on the Hugging Face hub: their names, and their files in the cache of huggingface-hub.

The hub is asked only for a model that the user has named. If it cannot be reached, this is known
after a moment, and the error says how to bring the files.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from groupdetr.errors import WeightsError
from groupdetr.files.missing import similar_path
from groupdetr.files.published_weights import LW_DETR_FILES, LW_DETR_FOLDER, LW_DETR_MODEL

# A model on the hub: its owner, its name, and the revision (a branch, a tag or a commit), if any.
# After the revision, there may be one of its files.
FORM = re.compile(
    r"(?P<id>(?P<owner>[a-z0-9][\w-]*)/[a-z0-9][\w.-]*)(?:@(?P<revision>[a-z0-9][\w./+-]*))?",
    re.IGNORECASE | re.ASCII,
)
# A revision, and a file behind it. The names of some revisions have slashes: refs/pr/1.
REVISION_AND_FILE = re.compile(r"(refs/[^/]+/[^/]+|[^/]+)/(.+)")
MAX_ID_LENGTH = 96  # characters; the hub has none that is longer
# Endings that say that an argument is the path of a file. Names of models have dots, too.
FILE_ENDINGS = frozenset(
    (
        *(".pth", ".pt", ".pkl", ".bin", ".safetensors", ".ckpt", ".onnx", ".json", ".yaml"),
        *(".yml", ".csv", ".txt", ".zip", ".tar", ".gz", ".jpg", ".jpeg", ".png", ".html", ".py"),
        ".pdparams",
    )
)
# What is downloaded of a model: first these files and, if it has none of them, the others.
PROCESSOR = "preprocessor_config.json"  # of transformers: the size of images
CONFIGURATIONS = ("config.json", PROCESSOR)
SAFE_FILES = (*CONFIGURATIONS, "*.safetensors", "*.safetensors.index.json")
PICKLED_FILES = (*CONFIGURATIONS, "*.bin", "*.bin.index.json", "*.pth", "*.pt")
WEIGHTS_ENDINGS = (".safetensors", ".bin", ".pth", ".pt")
# A file is downloaded by its name if it has one of these endings.
NAMED_ENDINGS = (*WEIGHTS_ENDINGS, ".ckpt", ".pdparams")
MAX_LISTED = 12  # files of weights that a message lists
_NOT_HERE = "there is no such path, and no such model in the cache of this machine"
CONNECT_SECONDS = 3  # after which a hub that does not answer counts as unreachable
RETRY_SECONDS = 30  # until a hub that was unreachable is tried again


@dataclass(frozen=True)
class HubModel:
    """A model on the hub. ``revision`` is a branch, a tag or a commit; None: the main branch.

    ``file`` is one of the files of the model, as a path in it; None: the usual ones.
    """

    id: str  # owner/name
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        if self.file is not None:
            return f"{self.id}@{self.revision or 'main'}/{self.file}"
        return self.id if self.revision is None else f"{self.id}@{self.revision}"

    @property
    def folder_name(self) -> str:
        """The model as the name of a folder or a file, such as owner--name."""
        return re.sub(r"[/@]", "--", str(self))


def model_named(source: str | os.PathLike[str]) -> HubModel | None:
    """Return the model on the hub that an argument names, None if the argument is a path.

    An existing path is always a path. An argument with a revision, such as ``owner/name@main``, is
    a model otherwise. Without one, it is a path that was mistyped if there is a folder of the
    owner's name, if a similar path exists, or if it has the ending of a file. After the revision,
    there may be a file of weights: ``owner/name@main/folder/weights.pth``. The name of a published
    file of LW-DETR stands for that file.
    """
    text = source.as_posix() if isinstance(source, PurePath) else os.fspath(source)
    if text in LW_DETR_FILES and not os.path.lexists(text):
        return HubModel(LW_DETR_MODEL, "main", f"{LW_DETR_FOLDER}/{text}")
    match = FORM.fullmatch(text)
    if match is None or len(match["id"]) > MAX_ID_LENGTH or os.path.lexists(text):
        return None
    if match["revision"] is None:
        is_file = PurePath(text).suffix.lower() in FILE_ENDINGS
        if is_file or os.path.isdir(match["owner"]) or similar_path(text):
            return None
    elif ".." in match["revision"]:
        return None
    elif match["revision"].lower().endswith(NAMED_ENDINGS):
        with_file = REVISION_AND_FILE.fullmatch(match["revision"])
        if with_file is not None:
            return HubModel(match["id"], with_file[1], with_file[2])
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

    Files that are not in the cache are downloaded: the configurations and the weights, in
    safetensors if the model has them. A folder without config.json that has one weights file is
    that file. If ``model`` names a file, this file alone is downloaded and returned. `WeightsError`
    if there is no such model, if it is neither in the cache nor reachable, or if it has several
    files of weights and none of them is named.
    """
    with offline_if_unreachable() as reachable:
        if model.file is not None:
            return _named_file(model, model.file, reachable)
        for patterns in (SAFE_FILES, PICKLED_FILES):
            if patterns is PICKLED_FILES and reachable:
                # Before the download, because such files are large, and there may be many.
                _expect_one_choice(model, _list_files(model))
            folder = _snapshot(model, patterns, reachable)
            if not folder.is_dir():  # The model has none of these files.
                continue
            names = sorted(entry.name for entry in folder.iterdir())
            weights = [name for name in names if name.endswith(WEIGHTS_ENDINGS)]
            if not weights:
                continue
            if not reachable:
                _warn_of_cache(model)
            _expect_one_choice(model, names)
            if "config.json" not in names:
                return folder / weights[0]
            return folder
    if not reachable:
        raise missing(model, _NOT_HERE)
    raise WeightsError(
        "this model on the Hugging Face hub has no weights that can be read",
        str(model),
        f"pass another one; its files must end in {', '.join(WEIGHTS_ENDINGS)}",
    )


def _named_file(model: HubModel, file: str, reachable: bool) -> Path:
    """Return a file of a model in the cache, which is downloaded if it is not there."""
    folder = _snapshot(model, (glob.escape(file),), reachable, in_folders=True)
    path = folder / file
    if path.is_file():
        if not reachable:
            _warn_of_cache(model)
        return path
    if not reachable:
        raise missing(model, _NOT_HERE)
    weights = [name for name in _list_files(model) if name.lower().endswith(NAMED_ENDINGS)]
    raise WeightsError(
        f"this model on the Hugging Face hub has no file {file}",
        str(model),
        f"its files of weights: {_shown(weights) or 'none'}",
    )


def _warn_of_cache(model: HubModel) -> None:
    """Say once that a model is read from the cache, unless the user has chosen that."""
    if not _set_by_user() and model not in _warned:
        _warned.add(model)
        logging.getLogger("groupdetr").warning(
            f"the Hugging Face hub cannot be reached: {model} is read from the cache"
        )


def _list_files(model: HubModel) -> list[str]:
    """Return the names of all files of a model on the hub, with their folders."""
    from huggingface_hub import HfApi, constants

    with hub_errors(model, reachable=True):
        # The address is read now, because the default of the class is that at its import.
        api = HfApi(endpoint=constants.ENDPOINT)
        siblings = api.model_info(model.id, revision=model.revision).siblings or []
    return sorted(sibling.rfilename for sibling in siblings)


def _expect_one_choice(model: HubModel, names: Sequence[str]) -> None:
    """Raise `WeightsError` if it is unclear which of the files of a model are its weights.

    ``names`` are its files. With config.json, it is a model of transformers, or of this library.
    """
    if "config.json" in names:
        return
    weights = [name for name in names if name.endswith(NAMED_ENDINGS)]
    in_first_folder = [name for name in weights if "/" not in name]
    if len(in_first_folder) == 1 or not weights:
        return
    choices = in_first_folder or weights
    what = "several files of weights" if len(choices) > 1 else "its weights in a folder"
    example = HubModel(model.id, model.revision or "main", choices[0])
    raise WeightsError(
        f"this model on the Hugging Face hub has {what}: {_shown(choices)}",
        str(model),
        f"name the file, such as {example}",
    )


def _shown(names: Sequence[str]) -> str:
    """Return names separated by commas, and how many there are if these are not all."""
    text = ", ".join(names[:MAX_LISTED])
    return text if len(names) <= MAX_LISTED else f"{text}, ... ({len(names)} in all)"


def _snapshot(
    model: HubModel, patterns: tuple[str, ...], reachable: bool, in_folders: bool = False
) -> Path:
    """Return the folder of the cache with the files of a model that fit the patterns.

    ``in_folders``: whether files in folders of the model may fit, too.
    """
    # Imported here: it takes a second, and a local file does not need it.
    from huggingface_hub import snapshot_download

    with hub_errors(model, reachable):
        folder = snapshot_download(
            model.id,
            revision=model.revision,
            allow_patterns=list(patterns),
            # Otherwise, the training states and other versions in its folders
            ignore_patterns=None if in_folders else ["*/*"],
        )
    return Path(folder)


@contextmanager
def hub_errors(model: HubModel, reachable: bool) -> Iterator[None]:
    """Turn the errors of huggingface-hub about a model into a `WeightsError`."""
    from huggingface_hub import errors

    where = f"{model} on the Hugging Face hub"
    try:
        yield
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
    file = "" if model.file is None else f" {model.file}"
    cached = f"models--{model.id.replace('/', '--')}"
    remedies = [
        f"{first}; or on a machine with a network: hf download {model.id}{file}{revision}, and "
        f"copy the folder {cached} of its cache to the cache of this machine (HF_HUB_OFFLINE=1 "
        "then reads it without a network)"
    ]
    remedies += [remedy] if remedy else []
    return WeightsError(
        f"{what}, and {reason}",
        f"{model.id}, revision {model.revision or 'main'}; cache: {constants.HF_HUB_CACHE}",
        "; or ".join(remedies),
    )


def commit_of(model: HubModel, path: Path) -> str:
    """Return the commit of a file or folder of a model that `download` returned."""
    folder = path if path.is_dir() else path.parent
    for _ in PurePosixPath(model.file or "").parts[1:]:
        folder = folder.parent
    return folder.name


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
