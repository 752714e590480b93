"""Upload of a model folder to the Hub as one commit."""

import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import ModelError, one_line
from clipkit.models.hub import http_errors
from clipkit.models.publish.usage import HERE

CARD = "README.md"
_SIGNATURE = re.compile(r"\n<!-- clipkit: ([0-9a-f]{16}) -->\n?$")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True)
class Pushed:
    """Result of a push."""

    url: str
    """URL of the commit."""
    files: int
    size: int
    """Size of all files in bytes."""
    notes: list[str]


def check_pushable(repository: str, private: bool) -> None:
    """Create a Hub repository if it does not exist, and check that the user can write to it.

    Raises:
        ModelError: the user is not logged in or has no write access, the name is invalid, or `private` is set but the
            repository already exists and is public.
    """
    from huggingface_hub import HfApi, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if not re.fullmatch(r"[^/]+/[^/]+", repository):
        raise ModelError(_invalid_name(repository))
    with as_model_errors(repository):
        api = HfApi()
        api.whoami()
        api.create_repo(repository, private=private or None, exist_ok=True)
        # For an existing repository, create_repo checks nothing. In older clients, auth_check lacks write=True.
        address = f"{api.endpoint}/api/models/{repository}/auth-check/write"
        hf_raise_for_status(get_session().get(address, headers=build_hf_headers()))
        if private and not api.model_info(repository).private:
            raise ModelError(
                f"{repository}: already exists and is public; --private only applies to new repositories; make the "
                "repository private in its settings on the Hub, or use another name"
            )


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    message: str = "Upload with clipkit",
    names: Collection[str] | None = None,
) -> Pushed:
    """Upload a folder to the Hub as one commit.

    A repeated call does not send files again that were uploaded before an interruption. A model card that a user edited
    on the Hub is kept. No file on the Hub is deleted.

    Args:
        folder: folder of the model.
        repository: name of the repository, `org/name`. It is created if it does not exist.
        private: create a private repository. A repository that already exists must be private.
        message: commit message.
        names: names of the files to upload; None: all files. Links are never uploaded.

    Raises:
        ModelError: the repository cannot be written to, or the upload failed.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_pushable(repository, private)
    with tempfile.TemporaryDirectory() as temporary, as_model_errors(repository):
        api = HfApi()
        remote = [sibling.rfilename for sibling in api.model_info(repository).siblings or []]
        notes = _stale(folder, remote)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        operations = []
        for file in files:
            name = file.relative_to(folder).as_posix()
            if not _is_part(file, folder) or (names is not None and name not in names):
                notes.append(f"{name} was not uploaded, because it is not a file that clipkit wrote")
                continue
            if name == CARD:
                text = _for_hub(file.read_text(encoding="utf-8"), repository)
                if name in remote and _is_edited(api, repository, text):
                    notes.append(f"{CARD} was changed on the Hub, so the version on the Hub is kept")
                    continue
                file = Path(temporary) / CARD
                file.write_text(text, encoding="utf-8")
            elif name == "open_clip_config.json":
                file = _with_tokenizer_name(file, Path(temporary) / file.name, repository)
            operations.append((name, file))
        additions = [CommitOperationAdd(name, str(file)) for name, file in operations]
        commit = api.create_commit(repository, operations=additions, commit_message=message)
        return Pushed(commit.commit_url, len(operations), sum(file.stat().st_size for _, file in operations), notes)


def _is_part(file: Path, folder: Path) -> bool:
    """Return whether a file is inside a folder and is not a link."""
    return file.resolve() == folder.resolve() / file.relative_to(folder)


def signed(card: str) -> str:
    """Add a hash to a card, by which a later push detects whether a user edited the card."""
    return f"{card.rstrip()}\n\n<!-- clipkit: {_hash(card)} -->\n"


def unsigned(card: str) -> str:
    """Remove the hash that `signed` added to a card."""
    return _SIGNATURE.sub("", card).rstrip() + "\n"


def _hash(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()[:16]


def _for_hub(card: str, repository: str) -> str:
    """Insert the repository name into a card that clipkit wrote; a card without a hash stays unchanged."""
    return signed(unsigned(card).replace(HERE, repository)) if _SIGNATURE.search(card) else card


def _is_edited(api: Any, repository: str, text: str) -> bool:
    """Return whether a user wrote or edited the card on the Hub, and it differs from the new card `text`."""
    with tempfile.TemporaryDirectory() as folder:
        remote = Path(api.hf_hub_download(repository, CARD, local_dir=folder)).read_text(encoding="utf-8")
    signature = _SIGNATURE.search(remote)
    return remote != text and (signature is None or signature[1] != _hash(unsigned(remote)))


def _stale(folder: Path, remote: Sequence[str]) -> list[str]:
    """Return a warning if the Hub repository has weight files that the upload does not replace; else [].

    `remote` contains the names of the files in the repository.
    """
    local = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    others = [name for name in remote if name.endswith(WEIGHTS) and name not in local]
    if not others:
        return []
    return [
        f"the repository still contains {', '.join(others)}; other libraries may load these weights instead of the "
        "new weights; if they are old, delete them on the Hub"
    ]


def _with_tokenizer_name(config: Path, target: Path, repository: str) -> Path:
    """Insert the repository name into open_clip_config.json, so that open_clip finds the tokenizer on the Hub.

    Return `target`, the changed file. If `config` refers to no tokenizer in its own folder, return `config`.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    if values["model_cfg"]["text_cfg"].get("hf_tokenizer_name") != ".":
        return config
    values["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repository
    target.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return target


@contextmanager
def as_model_errors(repository: str) -> Iterator[None]:
    """Convert errors of the Hub inside a `with` block to ModelErrors with a one-line message."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    interruptions: tuple[type[BaseException], ...] = (*http_errors(), RuntimeError)
    try:
        yield
    except HFValidationError:
        raise ModelError(_invalid_name(repository)) from None
    except OfflineModeIsEnabled:
        raise ModelError(
            f"{repository}: cannot be reached because HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE"
        ) from None
    except LocalTokenNotFoundError:
        raise ModelError(f"{repository}: not logged in; log in with `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise ModelError(f"{repository}: {_refusal(error)}") from None
    except ValueError as error:
        if CARD not in str(error):  # an answer that is not JSON, for example from a proxy
            raise ModelError(f"{repository}: {_interrupted(error)}") from None
        raise ModelError(
            f"{repository}: the Hub rejects the model card ({one_line(error)}); fix its YAML header"
        ) from None
    except interruptions as error:
        raise ModelError(f"{repository}: {_interrupted(error)}") from None


def _invalid_name(repository: str) -> str:
    return f"{repository}: is not a valid Hub repository name; write org/name, for example me/my-clip"


def _refusal(error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    reason = f" ({one_line(Exception(error.server_message))})" if error.server_message else ""
    if status == 401:
        return "the token is not valid; log in again with `hf auth login`"
    if status == 403:
        return f"this token has no write access{reason}; use a token with write access, or a repository of your account"
    if 400 <= status < 500 and status not in (408, 409, 412, 425, 429):  # other status codes are temporary errors
        return f"the Hub refuses the upload ({one_line(error)}); fix this, and run the same command again"
    return _interrupted(error)


def _interrupted(error: BaseException) -> str:
    return (
        f"the Hub is not reachable, or the upload was interrupted ({one_line(error)}); run the same command "
        "again; it does not send the uploaded files again"
    )
