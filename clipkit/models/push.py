"""To the Hub: a folder with a model becomes one commit of a repository."""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.errors import ModelError, one_line

_CARD = "README.md"
_MARK = re.compile(r"\n<!-- clipkit: ([0-9a-f]{16}) -->\n?$")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
HERE = "ORG/NAME"
"""What stands for the repository in a card that is not on the Hub yet."""


@dataclass(frozen=True)
class Pushed:
    """What a push did."""

    url: str
    """Of the commit."""
    files: int
    size: int
    """Bytes of these files."""
    notes: list[str]


def check_pushable(repository: str, private: bool) -> None:
    """See that the token may write to the repository, which is there afterwards.

    Raises:
        ModelError: it is not logged in, may not, or the name is none.
    """
    from huggingface_hub import HfApi

    with as_model_errors(repository):
        api = HfApi()
        api.whoami()
        api.create_repo(repository, private=private, exist_ok=True)


def push(folder: Path, repository: str, *, private: bool = False, message: str = "Upload with clipkit") -> Pushed:
    """Upload a folder as one commit; what an earlier, broken try has uploaded is not sent again.

    A model card that somebody has changed on the Hub stays as it is there. Nothing else is removed.

    Args:
        folder: the model's.
        repository: `org/name`; made where there is none.
        private: whether only its owner sees it, where it is made.
        message: of the commit.

    Raises:
        ModelError: it cannot be written to, or the transfer broke.
    """
    from huggingface_hub import HfApi

    check_pushable(repository, private)
    with tempfile.TemporaryDirectory() as aside, as_model_errors(repository):
        api = HfApi()
        there = [sibling.rfilename for sibling in api.model_info(repository).siblings or []]
        notes = _stale(folder, there)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        operations = []
        for file in files:
            name = file.relative_to(folder).as_posix()
            if name == _CARD and _MARK.search(file.read_text(encoding="utf-8")):  # else the user wrote it
                if name in there and not _is_ours(api, repository):
                    notes.append(f"{_CARD} was changed on the Hub, and stays as it is there")
                    continue
                text = unsigned(file.read_text(encoding="utf-8")).replace(HERE, repository)
                file = Path(aside) / _CARD
                file.write_text(signed(text), encoding="utf-8")
            elif name == "open_clip_config.json":
                file = _with_own_tokenizer(file, Path(aside) / file.name, repository)
            operations.append((name, file))
        commit = api.create_commit(repository, operations=_additions(operations), commit_message=message)
        return Pushed(commit.commit_url, len(operations), sum(file.stat().st_size for _, file in operations), notes)


def signed(card: str) -> str:
    """A card with a mark by which one that nobody has touched is known again."""
    return f"{card.rstrip()}\n\n<!-- clipkit: {_hash(card)} -->\n"


def unsigned(card: str) -> str:
    """The card without its mark."""
    return _MARK.sub("", card).rstrip() + "\n"


def _hash(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()[:16]


def _is_ours(api: Any, repository: str) -> bool:
    """Whether the card on the Hub is one of ours that nobody has changed."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(api.hf_hub_download(repository, _CARD, local_dir=folder)).read_text(encoding="utf-8")
    mark = _MARK.search(there)
    return mark is not None and mark[1] == _hash(unsigned(there))


def _stale(folder: Path, there: Sequence[str]) -> list[str]:
    """Weights of another layout, beside which a loader might not find these."""
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    others = [name for name in there if name.endswith(_WEIGHTS) and name not in own]
    return [f"the repository also holds {', '.join(others)}, which this push leaves there"] if others else []


def _with_own_tokenizer(config: Path, aside: Path, repository: str) -> Path:
    """open_clip finds a tokenizer that lies beside a model only by the repository's name."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if values["model_cfg"]["text_cfg"].get("hf_tokenizer_name") != ".":
        return config
    values["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = repository
    aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return aside


def _additions(files: Sequence[tuple[str, Path]]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd

    return [CommitOperationAdd(name, str(file)) for name, file in files]


@contextmanager
def as_model_errors(repository: str) -> Iterator[None]:
    """Within, what the Hub refuses is one line."""
    from httpx2 import HTTPError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError:
        raise ModelError(f"{repository}: is no name of a Hub repository; write org/name") from None
    except OfflineModeIsEnabled:
        raise ModelError(f"{repository}: cannot be pushed to while offline; unset HF_HUB_OFFLINE") from None
    except LocalTokenNotFoundError:
        raise ModelError(f"{repository}: nobody is logged in; log in with `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            raise ModelError(f"{repository}: the token is not valid; log in again with `hf auth login`") from None
        if status == 403:
            raise ModelError(
                f"{repository}: this token may not write there; take a token with write access, or a name of your own"
            ) from None
        raise ModelError(_broken(repository, error)) from None
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(_broken(repository, error)) from None


def _broken(repository: str, error: Exception) -> str:
    return (
        f"{repository}: the Hub cannot be reached, or the transfer broke ({one_line(error)}); give the same command "
        "again: what has arrived is not sent again"
    )
