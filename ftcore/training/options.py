"""The options of `python -m ftcore.train`, as the user gives them and with all defaults filled in."""

import re
from dataclasses import dataclass
from typing import Literal

from ftcore.cli import option
from ftcore.metrics import METRICS_HELP, metric_names
from ftcore.output import flag
from ftcore.training.task_options import TaskName, TaskOptions

Schedule = Literal["linear", "cosine", "constant"]

GOAL = ("epochs", "max_steps")  # a resumed run may change it, a resumed search may not
SIZES = ("num_layers", "num_decoder_layers", "d_model", "d_kv", "d_ff", "num_heads")  # the model's


@dataclass(kw_only=True)
class TrainOptions(TaskOptions):
    """Fine-tune or train T5 and GPT-2. Without options: teach weights/t5-mini to answer questions.

    A run's directory holds best/ and last/ (checkpoints that ftcore and transformers open), state/ (to go
    on with --resume), metrics.jsonl, predictions.jsonl, report.html, train_config.json and, with the extra
    plot installed, loss.png and tensorboard/.
    """

    task: TaskName = option(
        "qa",
        "how a file is turned into examples; lm (GPT-2) and span-corruption (T5) read plain text of any size",
        group="Task",
    )

    model: str | None = option(
        None,
        "directory or hub name of a checkpoint (default: weights/t5-mini or gpt2-mini)",
        group="Model and data",
        metavar="DIR",
        also="model_name_or_path pretrained_model_name_or_path",
    )
    from_scratch: bool = option(
        False, "start from random weights; --model then needs only config.json and a tokenizer"
    )
    train: list[str] | None = option(
        None,
        "files to train on, or patterns such as 'data/*.json' (default: the task's data set in "
        "examples/data)",
        metavar="FILE",
        also="train_file dataset_name",
    )
    valid: list[str] | None = option(
        None,
        "files to validate on (default: the task's in examples/data, or with --train a share of those "
        "files, see --valid-share). NAME=FILE makes several sets, as in dev=a.json test=b.json",
        metavar="FILE",
        also="validation_file eval_file",
    )
    valid_share: float = option(
        0.1, "share of the training files to hold out if --valid is not given", at_least=0, below=1
    )
    output: str | None = option(
        None,
        "directory of the run (default: a new one below runs/)",
        metavar="DIR",
        resumable=True,
        also="output_dir",
    )
    overwrite: bool = option(
        False, "replace the run that --output already holds", resumable=True, also="overwrite_output_dir"
    )
    resume: bool = option(
        False,
        "continue the run in --output, with the options it was started with",
        resumable=True,
        also="resume_from_checkpoint",
    )
    dry_run: bool = option(
        False,
        "do not train: print statistics of the data, the memory a run needs and the time of an epoch, "
        "measured on two batches",
    )
    check: bool = option(
        False,
        "do not train: check on a few examples that the run overfits one batch, accumulates and resumes "
        "exactly, and that neither padding nor the cache changes results",
    )

    num_layers: int | None = option(
        None,
        "blocks; without --num-decoder-layers, of both of T5's stacks. Under changed sizes, weights that "
        "fit are loaded from the checkpoint and the others are random",
        group="Changing the model",
        at_least=1,
        searchable=True,
    )
    num_decoder_layers: int | None = option(None, "blocks of T5's decoder", at_least=1, searchable=True)
    d_model: int | None = option(None, "width of the model", at_least=1, searchable=True)
    d_kv: int | None = option(
        None, "width of a head of T5; GPT-2 divides its width by its heads", at_least=1, searchable=True
    )
    d_ff: int | None = option(None, "width of the feed-forward layers", at_least=1, searchable=True)
    num_heads: int | None = option(None, "attention heads of a layer", at_least=1, searchable=True)
    set: list[str] | None = option(
        None, "other keys of config.json: n_positions=256 feed_forward_proj=gated-gelu", metavar="KEY=VALUE"
    )

    max_source_length: int = option(
        512,
        "tokens of the source; longer ones are truncated, with a warning",
        group="Lengths",
        at_least=1,
        also="max_length max_seq_length block_size",
    )
    max_target_length: int = option(
        128,
        "tokens of the target",
        at_least=1,
        also="max_new_tokens val_max_target_length generation_max_length",
    )
    pad_to_max_length: bool = option(
        False, "pad every batch to these lengths instead of its longest row", also="padding"
    )
    packing: bool = option(
        False,
        "put several examples into one row, up to these lengths, without attention between them, instead "
        "of batching examples of similar length",
    )

    epochs: int | None = option(
        None,
        "passes over the training set (default: 3); with --resume, a new goal",
        group="Optimization",
        at_least=1,
        searchable=True,
        also="num_train_epochs",
    )
    max_steps: int | None = option(
        None,
        "optimizer steps of the run; overrides --epochs. With --resume, a new goal",
        at_least=1,
        searchable=True,
    )
    batch_size: int | None = option(
        None,
        "examples per forward pass (default: 8)",
        at_least=1,
        searchable=True,
        also="per_device_train_batch_size",
    )
    grad_accum: int = option(
        1,
        "forward passes per optimizer step; the loss is exactly that of one large batch",
        at_least=1,
        searchable=True,
        also="gradient_accumulation_steps",
    )
    optimizer: Literal["adamw", "adafactor"] = option(
        "adamw",
        "adafactor is what the published T5 was trained with; its state is much smaller than AdamW's. It "
        "changes the defaults of --lr, --schedule, --warmup, --weight-decay and --clip-norm to T5's",
        searchable=True,
        also="optim adafactor=adafactor",
    )
    lr: float | None = option(
        None,
        "peak learning rate (default: adamw 3e-4 for T5 and 5e-5 for GPT-2, with --relative-steps 1e-2, "
        "with --lora-rank 3e-3 and 1e-3; adafactor 1e-3)",
        at_least=0,
        searchable="log",
        also="learning_rate",
    )
    relative_steps: bool | None = option(
        None,
        "multiply --lr by the root mean square of each weight matrix, as adafactor always does (with 1e-2, "
        "for example); for small T5s, whose matrices differ 60-fold in scale",
        searchable=True,
    )
    schedule: Schedule | None = option(
        None,
        "learning rate after the warm-up (default: adamw linear, adafactor constant)",
        searchable=True,
        also="lr_scheduler_type",
    )
    warmup: int | float | None = option(
        None,
        "steps of warm-up, or below 1 the share of all steps (default: of adamw 0.05, of adafactor none)",
        at_least=0,
        searchable=True,
        also="warmup_ratio warmup_steps",
    )
    weight_decay: float | None = option(
        None,
        "weight decay, on matrices only (default: adamw 0.01, adafactor 0)",
        at_least=0,
        searchable="log",
    )
    clip_norm: float | None = option(
        None,
        "largest global gradient norm, 0 for no limit (default: adamw 1, adafactor 0, since it clips each "
        "tensor's update)",
        at_least=0,
        searchable=True,
        also="max_grad_norm",
    )
    label_smoothing: float = option(
        0.0,
        "probability spread evenly over the vocabulary, in the training loss only",
        at_least=0,
        below=1,
        searchable=True,
        also="label_smoothing_factor",
    )
    dropout: float | None = option(
        None,
        "all dropout rates of the model (default: those of config.json)",
        at_least=0,
        below=1,
        searchable=True,
    )
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "precision of the computation; weights stay fp32. fp16 needs CUDA", also="bf16=bf16 fp16=fp16"
    )
    seed: int = option(0, "random seed of dropout, data order and random weights", at_least=0)

    freeze: list[str] | None = option(
        None,
        "names of modules to freeze: encoder, decoder.block.0-3, transformer.h.0-5 transformer.wte; a "
        "tied weight is frozen everywhere",
        group="Partial training",
        metavar="NAME",
    )
    lora_rank: int | None = option(
        None,
        "train low-rank adapters (LoRA) of this rank and freeze everything else. best/ and last/ hold the "
        "merged weights, and the adapter alone in adapter/",
        at_least=1,
        searchable=True,
        also="lora_r",
    )
    lora_alpha: float | None = option(
        None, "scale of the adapters is alpha / rank (default: 2 * rank)", at_least=0, searchable=True
    )
    lora_dropout: float = option(0.0, "dropout on the adapters' input", at_least=0, below=1, searchable=True)
    lora_targets: list[str] | None = option(
        None,
        "names of linear layers or their suffixes, or all-linear (default: q v for T5, c_attn for GPT-2)",
        metavar="NAME",
        also="target_modules lora_target_modules",
    )

    eval_every: int | None = option(
        None,
        "steps between validations (default: one epoch)",
        group="Validation and saving",
        at_least=1,
        resumable=True,
        also="eval_steps eval_strategy evaluation_strategy",
    )
    eval_batch_size: int | None = option(
        None,
        "batch size of validation (default: twice --batch-size)",
        at_least=1,
        resumable=True,
        also="per_device_eval_batch_size",
    )
    early_stopping: int = option(
        0,
        "stop after this many validations in a row without an improvement of best/; 0 never does",
        at_least=0,
        resumable=True,
        also="early_stopping_patience patience",
    )
    eval_answers: int = option(
        200, "validation examples to generate answers for, where the task has answers", at_least=0
    )
    num_beams: int = option(1, "beams of these answers", at_least=1, also="generation_num_beams")
    metrics: list[str] | None = option(None, METRICS_HELP, metavar="NAME")
    best: str | None = option(
        None,
        "metric that selects best/, such as rougeL or dev/f1; valid_loss and perplexity are better the lower "
        "they are, others the higher, unless :min is appended, as in wer:min (default: exact_match, and the "
        "loss where it is equal or there are no answers, of the first validation set)",
        metavar="METRIC",
    )
    save_every: int | None = option(
        None,
        "steps between checkpoints/step-N (default: only best/ and last/)",
        at_least=1,
        resumable=True,
        also="save_steps save_strategy",
    )
    keep: int | None = option(
        None,
        "how many of checkpoints/step-N to keep (default: all); best/ and last/ are always kept",
        at_least=1,
        resumable=True,
        also="save_total_limit",
    )
    log_every: int = option(
        10, "steps between lines of metrics.jsonl", at_least=1, resumable=True, also="logging_steps"
    )

    gradient_checkpointing: bool = option(
        False,
        "recompute each block in the backward pass: less memory, about half as much time again, the same "
        "weights",
        group="Machine",
        resumable=True,
    )
    fast: bool = option(
        False,
        "replace the model's layers by faster ones (CPU); results differ by rounding and dropout's draws",
    )
    compile: bool = option(
        False,
        "compile the blocks with torch.compile, about a minute in the first step; meant for GPUs, no "
        "faster on a CPU",
        also="torch_compile",
    )
    device: str | None = option(
        None, "cpu, cuda or cuda:N (default: cuda if available)", also="use_cpu=cpu no_cuda=cpu"
    )
    workers: int = option(
        0, "worker processes of the data loader", at_least=0, resumable=True, also="dataloader_num_workers"
    )
    parallel: Literal["ddp", "fsdp"] | None = option(
        None,
        "under torchrun --nproc-per-node N -m ftcore.train, N processes share each batch: ddp replicates "
        "the model, fsdp shards weights, gradients and optimizer state (default: ddp)",
        resumable=True,
        also="fsdp=fsdp",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        metric_names(self.metrics)
        for text in self.set or []:
            if not re.match("[^=]+=", text):
                raise ValueError(f"--set {text}: expected KEY=VALUE, as in --set n_positions=256")
        if self.warmup is not None and self.warmup >= 1 and self.warmup % 1:
            raise ValueError(
                f"--warmup is {self.warmup}, expected a whole number of steps, or a share below 1"
            )
        if self.valid_share == 0:
            raise ValueError("--valid-share is 0, expected a share between 0 and 1")
        if self.lora_alpha == 0:
            raise ValueError("--lora-alpha is 0, expected more than 0")
        for name in ("lora_alpha", "lora_dropout", "lora_targets"):
            if getattr(self, name) and self.lora_rank is None:
                raise ValueError(f"{flag(name)} needs --lora-rank")
        if self.resume and self.output is None:
            raise ValueError("--resume needs --output, the directory of the run to continue")
        self._check_contradictions()

    def _check_contradictions(self) -> None:
        if self.packing and self.pad_to_max_length:
            raise ValueError("--packing contradicts --pad-to-max-length: packed rows need no fixed length")
        if self.optimizer == "adafactor" and self.relative_steps is False:
            raise ValueError(
                "--optimizer adafactor contradicts --no-relative-steps (relative_steps false, in a saved "
                "train_config.json): its steps are always relative"
            )
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run, --overwrite replaces it: choose one")
        for name in ("check", "dry_run"):
            if self.resume and getattr(self, name):
                raise ValueError(
                    f"{flag(name)} trains nothing, so that there is nothing to --resume: choose one"
                )
        if self.metrics and self.eval_answers == 0:
            raise ValueError("--metrics contradicts --eval-answers 0: metrics are of generated answers")
        if self.lora_rank and (self.optimizer == "adafactor" or self.relative_steps):
            relative = "--optimizer adafactor" if self.optimizer == "adafactor" else "--relative-steps"
            raise ValueError(
                f"--lora-rank contradicts {relative}: half of LoRA's matrices start at 0, and steps relative "
                "to their size would hardly move them"
            )
        if self.lora_rank and self.freeze:
            raise ValueError("--lora-rank contradicts --freeze: LoRA freezes all of the model's own weights")
        if self.lora_rank and self.from_scratch:
            raise ValueError("--lora-rank contradicts --from-scratch: LoRA adapts a trained model")
        if self.parallel == "fsdp" and self.optimizer == "adafactor":
            raise ValueError(
                "--parallel fsdp contradicts --optimizer adafactor: torch's takes means of rows and columns, "
                "which are on several processes. Use adamw, with --relative-steps if you like, or ddp"
            )
        if self.parallel == "fsdp" and self.precision == "fp16":
            raise ValueError(
                "--parallel fsdp contradicts --precision fp16: torch's loss scaling does not see gradients "
                "that overflow on another process. Use bf16, or ddp"
            )
