"""List of the missing and unreadable images of a run; `data.max_bad` limits their number."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from clipkit.data import AnyFeed
from clipkit.errors import DataError, TrainingError
from clipkit.processes import Processes
from clipkit.run_files import append, read_rows
from clipkit.training.folder.run_folder import RunFolder


@dataclass(eq=False)
class BadSamples:
    """List of the missing and unreadable images that a run needed.

    The file bad_samples.jsonl contains each of these images once. A row has the step that first needed the image, the
    position and the file of the image, and the reason.

    Args:
        max_bad: number of bad images that the recipe allows.
        processes: the processes of the run; all have the same list.
    """

    feed: AnyFeed
    max_bad: int
    folder: RunFolder
    processes: Processes
    images: set[int] = field(default_factory=set, init=False)

    def resume(self) -> None:
        """Read the list that the run wrote before it was interrupted."""
        self.images = set(
            self.processes.gather_objects(
                [row["image"] for row in read_rows(self.folder.bad_samples) if "image" in row]
            )[0]
        )

    def check_known(self, bad: Mapping[int, str]) -> None:
        """Raise an error if more images than `max_bad` are known to be bad before the first step.

        Raises:
            DataError: too many images are bad.
        """
        if len(bad) > self.max_bad:
            first = min(bad)
            raise DataError(
                f"{self.feed.name}: {len(bad)} of {self.feed.counts['images']} images are missing or unreadable (the "
                f"first is {self.feed.image_name(first)}: {bad[first]}), but data.max_bad allows {self.max_bad}; fix "
                "the images, drop their rows (clipkit data check --fix), or raise data.max_bad"
            )

    def any_new(self, bad: Mapping[int, str]) -> bool:
        """Return whether at least one of the given images is not in the list yet."""
        return any(image not in self.images for image in bad)

    def add(self, bad: Mapping[int, str], step: int) -> None:
        """Add the bad images that any process found in this step to the list.

        All processes must call this method together.

        Raises:
            TrainingError: the list cannot be written.
        """
        reasons = {image: why for one in self.processes.gather_objects(dict(bad)) for image, why in one.items()}
        new = sorted(image for image in reasons if image not in self.images)
        self.images |= set(new)

        def write() -> None:
            with self.folder.writing():
                for image in new:
                    row = {"step": step, "image": image, "file": self.feed.image_name(image)}
                    append(self.folder.bad_samples, {**row, "reason": reasons[image]})

        self.processes.on_main(write)

    @property
    def are_too_many(self) -> bool:
        """True if the number of bad images exceeds `max_bad`."""
        return len(self.images) > self.max_bad

    def check(self, step: int) -> None:
        """Raise an error if the number of bad images exceeds `max_bad`.

        Raises:
            TrainingError: too many images are bad.
        """
        if self.are_too_many:
            raise TrainingError(
                f"step {step}: {len(self.images)} of {self.feed.counts['images']} images of {self.feed.name} "
                f"are missing or unreadable, but data.max_bad allows {self.max_bad}; fix the images listed in "
                f"{self.folder.bad_samples} and start again with --overwrite, or raise data.max_bad and continue the "
                "run with --resume"
            )
