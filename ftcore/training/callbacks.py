"""Your own code in the training loop: `train(run, callbacks=[...])`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftcore.training.run import Run

Metrics = dict[str, float]  # the keys of metrics.jsonl; `step` and `epoch` always


class Callback:
    """Override the methods you need; here they do nothing.

    Every process of a parallel run calls them with the same arguments: write files and logs where
    `distributed.rank()` is 0. `run.stop(reason)` saves and ends the run after the current step. An exception
    ends it at once and is raised by `train`; the last save stays as it is.
    """

    def on_step(self, run: "Run", metrics: Metrics) -> None:
        """Follow an optimizer step.

        Args:
            run: `run.progress.step` steps have been taken.
            metrics: of this step alone: train_loss (nats per target token), learning_rate, grad_norm (before
                clipping). A line of metrics.jsonl has the mean loss of --log-every steps.
        """

    def on_validate(self, run: "Run", metrics: Metrics) -> None:
        """Follow a validation. The first one is of the untrained model, at step 0.

        Args:
            run: best/ is already saved if this validation was the best one.
            metrics: valid_loss (nats per target token), token_accuracy (0 to 1), perplexity and, for tasks
                with gold answers, exact_match and f1 (0 to 1) or those of --metrics. The keys of a named
                validation set begin with its name: dev/valid_loss.
        """

    def on_save(self, run: "Run", directory: Path) -> None:
        """Follow a save.

        Args:
            run: where `directory` is last/, its state to resume from is saved too.
            directory: the checkpoint: best/, last/ or checkpoints/step-N of `run.directory`.
        """
