"""Locking, clearing and writing of a run folder. Only one run at a time can use a folder."""

import errno
import hashlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipkit.errors import OutputError, TrainingError, one_line
from clipkit.files import as_os_errors, to_disk, write_whole
from clipkit.overwriting import check_no_run, run_of
from clipkit.processes import Processes
from clipkit.run_files import RunFiles, row_of
from clipkit.training.folder.checkpoint import (
    SUMS,
    checkpoint_of,
    checkpoint_steps,
    remove_checkpoint,
    remove_leftovers,
)


class RunFolder(RunFiles):
    """Folder of an active run, with methods to lock it, clear it and truncate its logs to a checkpoint.

    Only files and folders that `RunFiles` names are ever changed or removed.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._lock: int | None = None

    def claim(self, resume: bool, overwrite: bool, inputs: Sequence[str] = ()) -> None:
        """Lock the folder without changing any file of a run in it.

        Args:
            resume: True if a run in the folder will be continued.
            overwrite: True if a run in the folder will be replaced.
            inputs: data and models of the new run, which must not be deleted with the old run.

        Raises:
            OutputError: the folder contains a run, and neither `resume` nor `overwrite` is True. The error is also
                raised if another run is using the folder, if the folder is not writable, or if it contains a file with
                the name of a run file that clipkit did not write.
        """
        try:
            named = [file for file in (self.marker, *self.files, *self.folders) if os.path.lexists(file)]
            if named and not self.is_marked and not (resume and self._is_unmarked_run):
                raise OutputError(
                    f"{self.path}: contains {named[0].name}, but the folder was not made by clipkit (it has "
                    f"no {self.marker.name}); give another output folder, or, if the folder is a copy of a "
                    f"run, create the empty file {self.marker}"
                )
            if links := [file for file in self.files if file.is_symlink()]:
                raise OutputError(
                    f"{links[0]}: is a link; replace the link with the file itself, or give another output folder"
                )
            check_no_run(self, resume, overwrite)
            for source in inputs if overwrite else ():
                path = Path(source.partition("?")[0]).expanduser().resolve()
                if path == self.path.resolve() or run_of(path) == self.path.resolve():
                    raise OutputError(
                        f"{self.path}: contains {source}, which the recipe uses and --overwrite would delete; "
                        "give another output folder"
                    )
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._lock = _lock(self.path / ".lock")
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot be written to ({error.strerror}); give another output folder"
            ) from None

    @property
    def _is_unmarked_run(self) -> bool:
        """True if the run was started by an early version of clipkit, which wrote no marker file."""
        folders = [checkpoint_of(self.checkpoints, step) for step in checkpoint_steps(self.checkpoints)]
        return self.recipe.is_file() and any((folder / SUMS).is_file() for folder in folders)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def start(self) -> None:
        """Mark the folder as a run folder, and remove the unfinished files of a process that was killed."""
        if not self.is_marked:
            write_whole(self.marker, "")
        for unfinished in self.path.glob(".*.writing"):
            _remove(unfinished)

    def clear(self) -> None:
        """Remove the files of the run, and no other files.

        The recipe is removed last, so that a partly cleared folder is still recognized as a run folder.
        """
        remove_leftovers(self.checkpoints)
        for step in checkpoint_steps(self.checkpoints):
            remove_checkpoint(checkpoint_of(self.checkpoints, step))
        if left := checkpoint_steps(self.checkpoints):
            raise OSError(0, f"the checkpoint of step {left[0]} cannot be removed")
        write_whole(self.marker, "")
        for made in (self.model, self.adapter, self.tracking):
            _remove(made)
        for file in reversed(self.files):
            file.unlink(missing_ok=True)

    def mark(self) -> dict[str, Any]:
        """Flush metrics.jsonl, evaluations.jsonl and bad_samples.jsonl to disk.

        Returns:
            The length and the hash of each of these logs, by file name.
        """
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
        """Return the name of the first log whose entries from before a checkpoint were changed or lost.

        The result is None if all logs are intact.

        Args:
            marks: length and hash of each log at the checkpoint, from `mark`.
        """
        for name, mark in marks.items():
            file = self.path / name
            content = file.read_bytes()[: mark["bytes"]] if file.is_file() else b""
            if hashlib.sha256(content).hexdigest() != mark["sha256"]:
                return name
        return None

    def damaged(self, marks: Mapping[str, Any]) -> list[str]:
        """Return a message for each log that is shorter than at a checkpoint or has invalid lines.

        A log with edited entries gets no message if it is long enough and all its lines are valid.

        Args:
            marks: length and hash of each log at the checkpoint, from `mark`.
        """
        lines = []
        for name, mark in marks.items():
            file = self.path / name
            content = file.read_bytes() if file.is_file() else b""
            rows = content.splitlines()
            lost = sum(row_of(line) is None for line in rows)
            if self.altered({name: mark}) and (lost or len(content) < mark["bytes"]):
                kept = f"{len(rows) - lost} intact lines are kept"
                lines.append(f"{name}: {kept}, {lost} damaged lines are removed, and other lines may be missing")
        return lines

    def cut(self, marks: Mapping[str, Any], step: int) -> None:
        """Truncate each log to its length at a checkpoint.

        The resumed run writes the later entries again. A damaged log keeps its valid lines up to the step of the
        checkpoint.

        Args:
            marks: length and hash of each log at the checkpoint, from `mark`.
            step: step of the checkpoint.
        """
        for name, mark in marks.items():
            if (self.path / name).is_file() and not self.altered({name: mark}):
                os.truncate(self.path / name, mark["bytes"])
            else:
                _keep_whole_lines(self.path / name, step)
        _keep_whole_lines(self.speed, step)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Return a context for writing to the folder; a full disk raises a one-line TrainingError."""
        try:
            with as_os_errors():
                yield
        except OSError as error:
            raise TrainingError(
                f"{self.path}: can no longer be written to ({one_line(error)}); the saved files are complete: "
                "free some disk space, then continue the run with --resume"
            ) from None

    def replace_model(self, save: Callable[[Path], None]) -> None:
        """Replace the folder `model` with a new one, after `save` has written the model to a temporary folder.

        Args:
            save: function that writes the model to the given folder.
        """
        self._replace(self.model, save)
        files = sorted(path.relative_to(self.model).as_posix() for path in self.model.rglob("*") if path.is_file())
        write_whole(self.marker, "".join(f"{name}\n" for name in files))

    def replace_adapter(self, save: Callable[[Path], None]) -> None:
        """Replace the folder `adapter` with a new one, after `save` has written the adapters to a temporary folder.

        Args:
            save: function that writes the adapters to the given folder.
        """
        self._replace(self.adapter, save)

    def _replace(self, folder: Path, save: Callable[[Path], None]) -> None:
        aside, old = self.path / f".{folder.name}-writing", self.path / f".{folder.name}-old"
        _remove(aside)
        _remove(old)
        save(aside)
        for file in [*(path for path in aside.rglob("*") if path.is_file()), aside]:
            to_disk(file)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        _remove(old)


@contextmanager
def claimed(
    folder: RunFolder, processes: Processes, resume: bool, overwrite: bool, inputs: Sequence[str] = ()
) -> Iterator[RunFolder]:
    """Return a context in which the main process has locked a run folder.

    The arguments and errors are those of `RunFolder.claim`.
    """
    try:
        processes.on_main(lambda: folder.claim(resume, overwrite, inputs))
        yield folder
    finally:
        folder.release()


def _keep_whole_lines(file: Path, step: int) -> None:
    if file.is_file():
        rows = ((line, row_of(line)) for line in file.read_bytes().splitlines())
        write_whole(
            file, "".join(f"{line.decode()}\n" for line, row in rows if row is not None and row["step"] <= step)
        )


def _remove(path: Path) -> None:
    """Remove a folder and its content, a file or a link, if it exists."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)


def _lock(file: Path) -> int:
    """Lock a file until this process ends (even if it is killed) or closes the file.

    Returns:
        The descriptor of the open file.

    Raises:
        OutputError: another run has locked the file.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        if sys.platform != "win32":
            import fcntl

            try:
                # This lock belongs to the process. Loader workers do not inherit it; they may live seconds longer than
                # a killed run.
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.read(descriptor, 200).decode(errors="replace")
                os.close(descriptor)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise OutputError(
                    f"{file.parent}: is in use by another run ({holder}); wait until that run ends, or give "
                    "another output folder"
                ) from None
            try:
                replaced = os.fstat(descriptor).st_ino != file.stat().st_ino
            except FileNotFoundError:
                replaced = True
            if replaced:  # the previous holder has just released and removed it
                os.close(descriptor)
                continue
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        return descriptor
