"""The run folder: what a run leaves behind, and never overwrites unasked."""

import errno
import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from clipkit.errors import OutputError, TrainingError, one_line
from clipkit.files import write_whole
from clipkit.processes import Processes
from clipkit.run_files import RunFiles, step_of
from clipkit.training.folder.checkpoint import (
    checkpoint_of,
    checkpoint_steps,
    remove_checkpoint,
    remove_leftovers,
    to_disk,
)


class RunFolder(RunFiles):
    """The folder of a run at work: locked, cleared, cut back to a checkpoint.

    Only files and folders that `RunFiles` names are ever changed or removed.

    Args:
        path: the run folder.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._lock: int | None = None

    def claim(self, resume: bool, overwrite: bool) -> None:
        """See that the folder is free, or that the user said what to do with the run in it, and lock it.

        Changes nothing of what is there.

        Raises:
            OutputError: it holds a run and neither was asked for, or something else by the names of a run's files;
                another run is at work in it; or it cannot be written to.
        """
        try:
            if self.recipe.exists() and not (resume or overwrite):
                raise OutputError(
                    f"{self.path}: already holds a run; add --resume to go on with it, --overwrite to replace it, "
                    "or give another output"
                )
            foreign = [own for own in (*self.files, *self.folders) if own.exists()]
            if foreign and not self.recipe.exists():
                raise OutputError(
                    f"{self.path}: has {foreign[0].name} but no recipe.yaml, so it is no run's; give another output"
                )
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._lock = _lock(self.path / ".lock")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written to ({error.strerror}); give another output") from None

    def release(self) -> None:
        """Let another run have the folder."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Remove the run that is here, and only that; its recipe last, so that what is left after a kill is a run's."""
        remove_leftovers(self.checkpoints)
        for step in checkpoint_steps(self.checkpoints):
            remove_checkpoint(checkpoint_of(self.checkpoints, step))
        if left := checkpoint_steps(self.checkpoints):
            raise OSError(0, f"the checkpoint of step {left[0]} cannot be removed")
        _remove(self.model)
        _remove(self.tracking)
        for file in reversed(self.files):
            file.unlink(missing_ok=True)

    def mark(self) -> dict[str, Any]:
        """How far the logs that the recipe determines have come; what is in them is on the disk."""
        marks = {}
        for file in (self.metrics, self.evaluations, self.bad_samples):
            content = b""
            if file.is_file():
                with file.open("rb") as log:
                    content = log.read()
                    os.fsync(log.fileno())
            marks[file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        return marks

    def altered(self, marks: Mapping[str, Any]) -> str | None:
        """The log that does not begin as it was when it was marked."""
        for name, mark in marks.items():
            file = self.path / name
            content = file.read_bytes()[: mark["bytes"]] if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() != mark["sha256"]:
                return name
        return None

    def cut(self, marks: Mapping[str, Any], step: int) -> None:
        """Drop what was logged since the mark, after `step`, and will be logged again."""
        for name, mark in marks.items():
            if (self.path / name).is_file():
                os.truncate(self.path / name, mark["bytes"])
        if self.speed.is_file():
            kept = [line for line in self.speed.read_text(encoding="utf-8").splitlines() if step_of(line) <= step]
            write_whole(self.speed, "".join(line + "\n" for line in kept))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes into the folder while the run is on: a disk that is full becomes a line that says so."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"{self.path}: cannot be written to any more ({one_line(error)}); what was saved before is whole: "
                "make room for it, then go on with --resume"
            ) from None

    def replace_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` write a model aside, then put it in the place of `model`."""
        aside, old = self.path / ".model-writing", self.path / ".model-old"
        _remove(aside)
        _remove(old)
        save(aside)
        for file in [*(path for path in aside.rglob("*") if path.is_file()), aside]:
            to_disk(file)
        if self.model.exists():
            self.model.rename(old)
        aside.rename(self.model)
        _remove(old)


@contextmanager
def claimed(folder: RunFolder, processes: Processes, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Claim a run folder for the time of a run, by the main process. Errors as in `RunFolder.claim`."""
    try:
        processes.on_main(lambda: folder.claim(resume, overwrite))
        yield folder
    finally:
        folder.release()


def _remove(path: Path) -> None:
    """A folder with what is in it, or a link to one, if it is there."""
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _lock(file: Path) -> int:
    """Lock the file for this process's life: the system takes the lock back from a process that was killed."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if sys.platform != "win32":
            import fcntl

            try:
                # Of the process: loader workers, which outlive a killed run by seconds, do not inherit it.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(descriptor, 200).decode(errors="replace")
                os.close(descriptor)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise OutputError(
                    f"{file.parent}: a run is at work in it ({holder}); wait for it, or give another output"
                ) from None
            try:
                replaced = os.fstat(descriptor).st_ino != file.stat().st_ino
            except FileNotFoundError:
                replaced = True
            if replaced:  # who held it has just let go and removed it
                os.close(descriptor)
                continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return descriptor
