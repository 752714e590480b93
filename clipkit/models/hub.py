"""Model folders: local folders, and downloads of the needed files from Hub repositories."""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from clipkit.errors import ModelError, one_line
from clipkit.run_files import read_object

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
# Configurations, vocabularies and a model card, without the weights of other frameworks.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "README.md", "1_Pooling/*")
_CLIPKIT_FILES = ("clipkit.json", "heads.safetensors", "view_heads.safetensors", "image/*", "text/*")
# In order of preference, safetensors before pickles; only the first that exists is downloaded.
_TRANSFORMERS_WEIGHTS = (
    ("model.safetensors", "model.safetensors"),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin"),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
)
# In open_clip's order of preference.
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
)


def local_folder(name: str, model_types: Collection[str] | None = None) -> Path:
    """Return a local model folder. A Hub repository is downloaded first.

    Args:
        name: a folder, or a repository as `org/name` or `org/name@revision`.
        model_types: transformers model types whose weights are needed. For repositories of other types, only small
            files are downloaded. None: all types. Empty: no weights.

    Raises:
        ModelError: neither the folder nor the repository exists, or the repository is not accessible.
    """
    folder = _folder(name)
    if folder is not None:
        return folder
    if not _REPOSITORY.fullmatch(name) or name.startswith((".", "/", "~")):
        raise ModelError(f"{name}: folder not found; give a folder, or a Hub repository as org/name")
    repository, _, revision = name.partition("@")
    return _download(repository, revision or None, model_types)


def _folder(name: str) -> Path | None:
    with suppress(OSError, RuntimeError):  # too long for a path, or an unknown user
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    return None


def check_repository(name: str) -> None:
    """Check that a model's name is a local folder or a Hub repository, without importing torch.

    A repository in the Hub cache is accepted without asking the Hub.

    Raises:
        ModelError: as for `local_folder`.
    """
    if _folder(name) is not None:
        return
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    try:
        _in_cache(repository, revision or None)
    except (HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError):
        local_folder(name, ())


def http_errors() -> tuple[type[BaseException], ...]:
    """Return the exception types of failed requests to the Hub. They depend on its HTTP library (httpx or httpx2)."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__


def _download(repository: str, revision: str | None, model_types: Collection[str] | None) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    name = repository if revision is None else f"{repository}@{revision}"
    try:
        if constants.HF_HUB_OFFLINE:
            return _in_cache(repository, revision)
        info = HfApi().model_info(repository, revision=revision)
        files = [sibling.rfilename for sibling in info.siblings or []]
        patterns = _needed(repository, info.sha, files, model_types)
        try:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
        except http_errors():  # older clients do not resume an interrupted transfer themselves
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError:
        raise ModelError(f"{name}: is neither a folder nor a valid Hub repository name; write org/name") from None
    except errors.GatedRepoError:
        raise ModelError(
            f"{name}: is a gated repository; accept the terms on its Hub page, and log in with `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError as error:
        # Without a valid token, the Hub answers the same for private and missing repositories.
        reason = "is private or does not exist; log in with `hf auth login`, or check the name"
        if error.response.status_code == 404:
            reason = "is neither a folder nor a Hub repository; check the name"
        raise ModelError(f"{name}: {reason}") from None
    except errors.RevisionNotFoundError:
        raise ModelError(
            f"{name}: the repository has no revision {revision}; leave out @{revision} to use main"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ModelError(
            f"{name}: is neither a folder nor in the Hub cache, and downloads are disabled (HF_HUB_OFFLINE); "
            "unset HF_HUB_OFFLINE to download the model, or give a folder"
        ) from None
    except http_errors() as error:
        # The Hub does not answer: use the cache.
        try:
            return _in_cache(repository, revision)
        except errors.LocalEntryNotFoundError:
            raise ModelError(
                f"{name}: folder not found, and the Hub is not reachable ({one_line(error)}); check the name or the "
                "network, or give a folder"
            ) from None


def _needed(repository: str, sha: str | None, files: list[str], model_types: Collection[str] | None) -> list[str]:
    """Return the file name patterns of the files to download. `model_types` is as for `local_folder`."""
    if model_types is not None and not model_types:
        return list(_SMALL_FILES)
    if "clipkit.json" in files:
        return [*_CLIPKIT_FILES, "README.md"]
    model_type = _model_type(repository, sha) if "config.json" in files else None
    supported = model_type is not None and (model_types is None or model_type in model_types)
    weights = [pattern for file, pattern in _TRANSFORMERS_WEIGHTS if file in files and supported]
    if "open_clip_config.json" in files and not weights:
        weights = [file for file in OPEN_CLIP_WEIGHTS if file in files]
    if "adapter_config.json" in files and not weights:
        weights = ["adapter_model.safetensors"]
    return [*_SMALL_FILES, "view_heads.safetensors", *weights[:1]]


def _model_type(repository: str, sha: str | None) -> str | None:
    from huggingface_hub import hf_hub_download

    return read_object(Path(hf_hub_download(repository, "config.json", revision=sha))).get("model_type")


def _in_cache(repository: str, revision: str | None) -> Path:
    """Return the cached copy of a Hub repository, in which weights may be missing."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=list(_SMALL_FILES))
    )
