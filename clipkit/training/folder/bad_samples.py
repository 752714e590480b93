"""Images of a run that cannot be had: counted, listed, and too many of them a reason to stop."""

from collections.abc import Mapping

from clipkit.data import Pairs
from clipkit.errors import DataError, TrainingError
from clipkit.processes import Processes
from clipkit.run_files import append, read_rows
from clipkit.training.folder.run_folder import RunFolder


class BadSamples:
    """The distinct images that were due and could not be had.

    Args:
        pairs: the data.
        max_bad: how many may be.
        folder: where bad_samples.jsonl lists each of them once: the step that first met it, its position, name, reason.
        processes: who takes part; all of them agree on what is bad.
    """

    def __init__(self, pairs: Pairs, max_bad: int, folder: RunFolder, processes: Processes) -> None:
        self.pairs = pairs
        self.max_bad = max_bad
        self.folder = folder
        self.processes = processes
        self.images: set[int] = set()

    def resume(self) -> None:
        """Know what was listed before."""
        self.images = set(
            self.processes.gather_objects([row["image"] for row in read_rows(self.folder.bad_samples)])[0]
        )

    def check_known(self, bad: Mapping[int, str]) -> None:
        """See that what is bad before the first step is not too much already.

        Raises:
            DataError: it is.
        """
        if len(bad) > self.max_bad:
            raise DataError(
                f"{self.pairs.name}: {len(bad)} of its {len(self.pairs.images)} images cannot be had, the first: "
                f"{bad[min(bad)]}; mend them, drop their rows (clipkit data check --fix), or raise data.max_bad"
            )

    def any_new(self, bad: Mapping[int, str]) -> bool:
        """Whether any of these is new."""
        return any(image not in self.images for image in bad)

    def add(self, bad: Mapping[int, str], step: int) -> None:
        """Take in what this step met, on all processes together.

        Raises:
            TrainingError: the list cannot be written.
        """
        met = {image: reason for own in self.processes.gather_objects(dict(bad)) for image, reason in own.items()}
        new = sorted(image for image in met if image not in self.images)
        self.images |= set(new)

        def write() -> None:
            with self.folder.writing():
                for image in new:
                    row = {"step": step, "image": image, "file": self.pairs.image_name(image)}
                    append(self.folder.bad_samples, {**row, "reason": met[image]})

        self.processes.on_main(write)

    @property
    def are_too_many(self) -> bool:
        """Whether more images are bad than the recipe allows."""
        return len(self.images) > self.max_bad

    def check(self, step: int) -> None:
        """See that there are not too many.

        Raises:
            TrainingError: there are.
        """
        if self.are_too_many:
            raise TrainingError(
                f"step {step}: of the {len(self.pairs.images)} images of {self.pairs.name} "
                f"{len(self.images)} could not be had, more than data.max_bad allows ({self.max_bad}); "
                f"{self.folder.bad_samples} lists them: mend them and begin again, or raise data.max_bad and go on "
                "with --resume"
            )
