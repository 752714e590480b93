"""Schedule of logging, evaluation and saving, by step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Calendar:
    """Steps of a run after which it logs, evaluates and saves.

    Steps are counted from 1: step N is the N-th update.

    Args:
        steps: number of updates in the whole run.
        steps_per_epoch: number of updates in one epoch.
        log_every: steps from one logged step to the next.
        evaluate_every_epochs: epochs from one evaluation to the next.
        save_every: steps from one checkpoint to the next.

    Example:
        >>> calendar = Calendar(steps=10, steps_per_epoch=4, log_every=3, evaluate_every_epochs=1, save_every=5)
        >>> [step for step in range(1, 11) if calendar.logs(step)]
        [3, 6, 9, 10]
        >>> [step for step in range(1, 11) if calendar.evaluates_after(step)]
        [4, 8]
    """

    steps: int
    steps_per_epoch: int
    log_every: int
    evaluate_every_epochs: int
    save_every: int

    def logs(self, step: int) -> bool:
        """Return whether this step is written to the logs."""
        return step % self.log_every == 0 or step == self.steps

    def evaluates_after(self, step: int) -> bool:
        """Return whether this step ends an epoch after which the model is evaluated."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return step > 0 and step_in_epoch == 0 and (step == self.steps or epoch % self.evaluate_every_epochs == 0)

    def saves_after(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step: every `save_every` steps, and after the last step.

        The training loop also writes a checkpoint before each evaluation.
        """
        return step == self.steps or step % self.save_every == 0
