"""The options of `python -m ftcore.bench`."""

from dataclasses import dataclass
from typing import Literal

from ftcore.benchmark import growth
from ftcore.benchmark.cases import ROWS
from ftcore.cli import check_bounds, did_you_mean, option

MODELS = ["gpt2", "t5-small"]
RUNS, QUICK_RUNS = 5, 3


@dataclass
class BenchOptions:
    """Measure ftcore beside transformers and CTranslate2, where these are installed, on this machine.

    Each side runs in a process of its own, with the same weights, inputs and threads; they take turns. The
    table has each side's median, the ratio to ftcore's time with the quartiles over the rounds, how much of
    what the machine can do at most ftcore reaches, and each process's peak memory. Rows:

    load      a directory becomes a model             ready     the same, and everything made to generate
    prefill   the first token after a long input      greedy    one row        greedy-b8   eight rows
    beam4     4 beams of one source                   beam4-b8  4 beams of eight sources
    train           a training step: ftcore's default, and transformers at its best (batches of similar
                    length, fused AdamW)
    train-tutorial  the same of ftcore; transformers as in its tutorials (padded to the limit, plain AdamW)
    train-padded    both padded to the limit

    load, prefill and generation are of random ids, training is of the examples of --train.
    """

    model: list[str] | None = option(
        None,
        "names of published shapes, such as gpt2-medium or t5-base, with random weights; or "
        "directories (default: gpt2 t5-small)",
        metavar="NAME",
    )
    rows: list[str] | None = option(None, "names of the rows above (default: all)", metavar="NAME")
    dtype: Literal["fp32", "bf16", "int8"] = option(
        "fp32",
        "number format; int8 is that of ftcore's and CTranslate2's weights, transformers has fp32 "
        "beside it (training: fp32 and bf16)",
    )
    compile: bool = option(
        False,
        "ftcore generates with compiled steps, as its users may, and both train compiled: ftcore's "
        "blocks, all of transformers' model. The making of programs is not counted",
    )
    runs: int | None = option(None, "rounds of each row (default: 5, with --quick 3)", at_least=1)
    quick: bool = option(False, "short inputs and outputs, to see that it works: no figures to quote")

    train: str | None = option(
        None,
        "file of the task: emotion for GPT-2, qa for T5 (default: in examples/data)",
        group="What to train on",
        metavar="FILE",
    )
    tokenizer: str | None = option(
        None,
        "directory of the tokenizer (default: the model's, for a shape weights/'s)",
        metavar="DIR",
    )
    dropout: float = option(
        0.0,
        "all rates of dropout; in the tutorials they are 0.1. Losses cannot be compared then, each "
        "side draws numbers of its own",
    )

    device: str = option("cpu", "cpu, cuda or cuda:N", group="Machine")
    threads: int | None = option(None, "of each side (default: one a core)", at_least=1)

    json: bool = option(False, "print a JSON object instead of the table", group="Output")
    growth: str | None = option(
        None,
        "file (PNG) to draw how time and memory grow with length, rows, beams and model size, which "
        "are measured instead of the rows above (models: gpt2 gpt2-medium gpt2-large)",
        metavar="FILE",
    )

    def __post_init__(self) -> None:
        for row in self.rows or []:
            if row not in ROWS:
                raise ValueError(
                    f"--rows: unknown row {row!r}{did_you_mean(row, ROWS)}; rows: {', '.join(ROWS)}"
                )
        check_bounds(self)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout is {self.dropout}, expected a rate from 0 to below 1")
        if (self.train or self.tokenizer) and len(self.models) > 1:
            raise ValueError("--train and --tokenizer are for one --model")
        if self.growth and self.rows:
            raise ValueError("--growth has rows of its own: leave --rows out")
        if self.growth and not self.growth.endswith(".png"):
            raise ValueError(f"--growth is {self.growth!r}, expected a name that ends with .png")

    @property
    def models(self) -> list[str]:
        return self.model or (growth.MODELS if self.growth else MODELS)

    @property
    def rounds(self) -> int:
        return self.runs or (QUICK_RUNS if self.quick else RUNS)
