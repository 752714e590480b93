"""Folders: local ones as they are, Hub repositories downloaded by huggingface_hub."""

import re
from pathlib import Path

from clipkit.errors import ModelError, one_line

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "1_Pooling/*"]


def local_folder(name: str) -> Path:
    """The folder called `name`, or the local copy of the Hub repository `org/name[@revision]`.

    Raises:
        ModelError: neither is there; says which was tried.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _REPOSITORY.fullmatch(name) or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: there is no such folder; give a folder or a Hub repository, as org/name")
    repository, _, revision = name.partition("@")
    return _download(repository, revision or None)


def _download(repository: str, revision: str | None) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = repository if revision is None else f"{repository}@{revision}"
    try:
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repository, revision=revision, local_files_only=True))
        files = HfApi().list_repo_files(repository, revision=revision)
        # Weights as safetensors where the repository has them, else the older pickles, which are opened safely.
        weights = "*.safetensors" if any(file.endswith(".safetensors") for file in files) else "pytorch_model*.bin"
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*_SMALL_FILES, weights]))
    except GatedRepoError:
        raise ModelError(f"{name}: is gated; accept its terms on its page and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: there is no such folder, and no such repository on the Hub (or it is private: `hf auth login`)"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name}: the repository has no revision {revision}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ModelError(
            f"{name}: there is no such folder, and it is not in the Hub cache while offline (HF_HUB_OFFLINE); "
            "go online once or give a folder"
        ) from None
    except (HfHubHTTPError, HTTPError, OSError) as error:
        return _cached(repository, revision, name, one_line(error))


def _cached(repository: str, revision: str | None, name: str, reason: str) -> Path:
    """The copy in the cache when the Hub does not answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{name}: there is no such folder, and the Hub cannot be reached ({reason}); check the name, "
            "or the network, or give a folder"
        ) from None
