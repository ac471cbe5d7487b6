"""Follow a run with an experiment tracker: each class below is one, in ten lines.

    python examples/track_a_run.py wandb          (pip install wandb)
    python examples/track_a_run.py mlflow         (pip install mlflow)

docs/python.md says more about callbacks.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from ftcore.training import Callback, Run, TrainOptions, prepare, rank, train


class Wandb(Callback):
    """Weights & Biases."""

    def __init__(self, options: TrainOptions) -> None:
        import wandb

        self.tracker = wandb.init(project="ftcore", config=asdict(options))

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        self.tracker.log(metrics, step=run.progress.step)

    on_validate = on_step

    def on_save(self, run: Run, directory: Path) -> None:
        self.tracker.summary[directory.name] = str(directory)

    def close(self) -> None:
        self.tracker.finish()


class MLflow(Callback):
    def __init__(self, options: TrainOptions) -> None:
        import mlflow

        self.tracker = mlflow
        mlflow.start_run()
        mlflow.log_params(asdict(options))

    def on_step(self, run: Run, metrics: dict[str, float]) -> None:
        self.tracker.log_metrics(metrics, step=run.progress.step)

    on_validate = on_step

    def on_save(self, run: Run, directory: Path) -> None:
        self.tracker.set_tag(directory.name, str(directory))

    def close(self) -> None:
        self.tracker.end_run()


TRACKERS = {"wandb": Wandb, "mlflow": MLflow}


def start(name: str, options: TrainOptions) -> Wandb | MLflow:
    try:
        return TRACKERS[name](options)
    except ImportError:
        raise SystemExit(f"{name} is not installed: pip install {name}") from None


def track(options: TrainOptions, name: str) -> None:
    """Train, and send options, metrics and paths of checkpoints to the tracker of this name."""
    with prepare(options) as run:
        # One process writes. The others train as it does, with nothing to call.
        trackers = [start(name, run.options)] if rank() == 0 else []
        try:
            train(run, trackers)
        finally:
            for tracker in trackers:
                tracker.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tracker", choices=TRACKERS)
    track(TrainOptions(model="weights/t5-mini", max_steps=100, eval_every=25), parser.parse_args().tracker)
