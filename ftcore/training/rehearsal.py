"""A short run on a few examples, from a run's own weights and options: what the checks are made on."""

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ftcore.data import ExampleDataset, Record
from ftcore.training.loss import batch_loss
from ftcore.training.optim import grad_scaler, make_optimizer
from ftcore.training.run_directory import RunDirectory
from ftcore.training.setup import Progress, Run, make_loader


def rehearse(
    run: Run,
    examples: ExampleDataset,
    directory: Path,
    *,
    batch_size: int,
    accumulate: int = 1,
    steps: int = 1,
    exact: bool = False,
) -> Run:
    """The same run before its first step, on other examples and at its peak learning rate throughout.

    It has a copy of the model, so that `run` stays as it is.

    Args:
        directory: where its files go.
        batch_size, accumulate: how a window is split.
        steps: how many the rehearsal has.
        exact: compute in float64, weights included, instead of the run's precision.
    """
    directory.mkdir(exist_ok=True)
    options = replace(
        run.options,
        batch_size=batch_size,
        eval_batch_size=batch_size,
        grad_accum=accumulate,
        max_steps=steps,
        eval_every=None,
        eval_answers=0,
        save_every=None,
        workers=0,
    )
    model = copy.deepcopy(run.model)
    precision = run.options.precision
    if exact:
        model, precision = model.double(), "fp32"  # "fp32" leaves the types of the weights alone
    return replace(
        run,
        options=options,
        directory=RunDirectory(directory),
        model=model,
        compute_loss=partial(batch_loss, model),
        train_loader=make_loader(examples, options, run.tokenizer, training=True),
        valid_loader=make_loader(examples, options, run.tokenizer, training=False),
        valid_set=examples,
        optimizer=make_optimizer(model, options),
        scaler=grad_scaler(precision, run.device),
        autocast=nullcontext if exact else run.autocast,
        total_steps=steps,
        learning_rate=lambda step: options.lr,
        progress=Progress(),
    )


class Few(torch.utils.data.Dataset):
    """Some examples of a data set, as a data set; see `ExampleDataset`."""

    truncated_sources = truncated_targets = 0  # those of the whole have been counted

    def __init__(self, dataset: ExampleDataset, chosen: Sequence[int]) -> None:
        self._dataset, self._chosen = dataset, list(chosen)
        self.decoder_only = dataset.decoder_only
        self.records: Sequence[Record] = ()
        if dataset.records:
            self.records = [dataset.records[index] for index in self._chosen]
        self.lengths = dataset.lengths[self._chosen]
        self.max_input_length, self.max_label_length = dataset.max_input_length, dataset.max_label_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._dataset.epoch = self.epoch
        return self._dataset[self._chosen[index]]

    def source(self, index: int) -> list[int]:
        return self._dataset.source(self._chosen[index])


def spread(dataset: ExampleDataset, count: int, *, by_labels: bool = False) -> Few:
    """At most `count` examples, from the shortest to the longest, by their input ids or by their labels."""
    by_length = np.argsort(dataset.lengths[:, int(by_labels)], kind="stable")
    places = np.linspace(0, len(by_length) - 1, min(count, len(by_length)))
    return Few(dataset, by_length[places.round().astype(int)].tolist())
