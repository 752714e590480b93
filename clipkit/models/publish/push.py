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
from clipkit.models.publish.usage import HERE

CARD = "README.md"
_MARK = re.compile(r"\n<!-- clipkit: ([0-9a-f]{16}) -->\n?$")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx")


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
        ModelError: nobody is logged in, or may not write there; the name is none; it is there, and not private.
    """
    from huggingface_hub import HfApi

    if not re.fullmatch(r"[^/]+/[^/]+", repository):
        raise ModelError(_no_name(repository))
    with as_model_errors(repository):
        api = HfApi()
        api.whoami()
        api.create_repo(repository, private=private or None, exist_ok=True)
        api.auth_check(repository, write=True)  # of one that was there, the call before says nothing
        if private and not api.model_info(repository).private:
            raise ModelError(
                f"{repository}: is there and public, and --private only makes new ones private; make it private in "
                "its settings, or take another name"
            )


def push(folder: Path, repository: str, *, private: bool = False, message: str = "Upload with clipkit") -> Pushed:
    """Upload a folder as one commit; what an earlier, broken try has uploaded is not sent again.

    A model card that somebody has changed on the Hub stays as it is there. Nothing else is removed.

    Args:
        folder: the model's.
        repository: `org/name`; made where there is none.
        private: make it so that only its owner sees it; one that is there has to be so already.
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
            if name == CARD:
                text = _for_hub(file.read_text(encoding="utf-8"), repository)
                if name in there and _is_somebodys(api, repository, text):
                    notes.append(f"{CARD} was changed on the Hub, and stays as it is there")
                    continue
                file = Path(aside) / CARD
                file.write_text(text, encoding="utf-8")
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


def _for_hub(card: str, repository: str) -> str:
    """A card of ours with the repository's name in it; one without our mark is the user's own, and stays."""
    return signed(unsigned(card).replace(HERE, repository)) if _MARK.search(card) else card


def _is_somebodys(api: Any, repository: str, text: str) -> bool:
    """Whether the card on the Hub is neither this one nor one of ours that nobody has changed."""
    with tempfile.TemporaryDirectory() as folder:
        there = Path(api.hf_hub_download(repository, CARD, local_dir=folder)).read_text(encoding="utf-8")
    mark = _MARK.search(there)
    return there != text and (mark is None or mark[1] != _hash(unsigned(there)))


def _stale(folder: Path, there: Sequence[str]) -> list[str]:
    """Weights of another layout, beside which a loader might not find these."""
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    others = [name for name in there if name.endswith(WEIGHTS) and name not in own]
    if not others:
        return []
    return [
        f"the repository also holds {', '.join(others)}, which this push leaves there; a loader may take them instead: "
        "delete them on the Hub where they are older weights"
    ]


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
        raise ModelError(_no_name(repository)) from None
    except OfflineModeIsEnabled:
        raise ModelError(f"{repository}: cannot be pushed to while offline; unset HF_HUB_OFFLINE") from None
    except LocalTokenNotFoundError:
        raise ModelError(f"{repository}: nobody is logged in; log in with `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise ModelError(f"{repository}: {_refusal(error)}") from None
    except ValueError as error:
        if CARD not in str(error):  # an answer that is no JSON, of something on the way
            raise ModelError(f"{repository}: {_broken(error)}") from None
        raise ModelError(f"{repository}: the Hub does not take the model card ({one_line(error)}); mend it") from None
    except (HTTPError, OSError, RuntimeError) as error:
        raise ModelError(f"{repository}: {_broken(error)}") from None


def _no_name(repository: str) -> str:
    return f"{repository}: is no name of a Hub repository; write org/name, as me/my-clip"


def _refusal(error: Any) -> str:
    status = error.response.status_code if error.response is not None else 0
    reason = f" ({one_line(Exception(error.server_message))})" if error.server_message else ""
    if status == 401:
        return "the token is not valid; log in again with `hf auth login`"
    if status == 403:
        return f"this token may not write there{reason}; take a token with write access, or a name of your own"
    if 400 <= status < 500 and status not in (408, 409, 412, 425, 429):  # the others pass
        return f"the Hub refuses it ({one_line(error)})"
    return _broken(error)


def _broken(error: Exception) -> str:
    return (
        f"the Hub cannot be reached, or the transfer broke ({one_line(error)}); push again: what has "
        "arrived is not sent again"
    )
