"""What a case cannot do without: bytes to read and multiplications, whoever does them.

Counted are matrices: those of the layers, the head and attention's two products. Two operations for each
number of a matrix and each token that passes it; training takes three times as many, one for the forward
pass and two for the gradients of inputs and weights.

Generating reads all matrices that a token passes at every step, and the keys and values so far.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ftcore.benchmark.cases import Case
from ftcore.benchmark.machine import Machine
from ftcore.data.tokenizer import IGNORED_LABEL
from ftcore.models import GPT2LMHeadModel, Model, T5ForConditionalGeneration
from ftcore.training.loss import count_targets

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


@dataclass(frozen=True)
class Sizes:
    """A model's matrices in numbers, and what attention adds."""

    encoder: int  # passed by every source token (GPT-2: 0)
    cross: int  # T5's keys and values of the source, passed by every source token
    decoder: int  # passed by every target token, without the head
    head: int
    encoder_width: int  # heads * K, times layers
    decoder_width: int

    @classmethod
    def of(cls, model: Model) -> "Sizes":
        head = model.lm_head.weight.numel()
        if isinstance(model, GPT2LMHeadModel):
            width = model.config.n_embd * model.config.n_layer
            return cls(0, 0, _matrices(model.transformer.h), head, 0, width)
        cross = sum(
            parameter.numel()
            for name, parameter in model.decoder.named_parameters()
            if name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight"))
        )
        inner = model.config.num_heads * model.config.d_kv
        return cls(
            encoder=_matrices(model.encoder.block),
            cross=cross,
            decoder=_matrices(model.decoder.block) - cross,
            head=head,
            encoder_width=inner * len(model.encoder.block),
            decoder_width=inner * len(model.decoder.block),
        )


def _matrices(blocks: nn.Module) -> int:
    """Numbers of the matrices; tables of position biases are looked up, not multiplied."""
    return sum(
        parameter.numel()
        for name, parameter in blocks.named_parameters()
        if parameter.dim() == 2 and "relative_attention_bias" not in name
    )


def generation_seconds(model: Model, case: Case, machine: Machine, dtype: str) -> float:
    """No generation can be faster: each step waits for its bytes or for its multiplications."""
    sizes, rows = Sizes.of(model), case.rows * case.beams
    number = BYTES[dtype]
    kept = 2 if dtype == "bf16" else 4  # bytes of a key's number
    is_t5 = isinstance(model, T5ForConditionalGeneration)

    tokens = case.rows * case.source
    if is_t5:
        multiplied = (sizes.encoder + sizes.cross) * tokens
        multiplied += 2 * sizes.encoder_width * case.source * tokens
        read = sizes.encoder + sizes.cross
    else:
        multiplied = (
            sizes.decoder * tokens + sizes.decoder_width * case.source * tokens
        )  # half is in the future
        multiplied += sizes.head * case.rows  # the last position alone
        read = sizes.decoder + sizes.head
    seconds = max(2 * multiplied / machine.flops, read * number / machine.bandwidth)

    steps = case.target if is_t5 else case.target - 1  # GPT-2's prompt gives the first token
    written = 0 if is_t5 else case.source  # that a token looks back at, besides its own kind
    looked_at = steps * written + steps * (steps + 1) / 2  # positions, over all steps
    keys = 2 * sizes.decoder_width * looked_at * rows
    products = keys
    if is_t5:
        keys += 2 * sizes.decoder_width * case.source * case.rows * steps
        products += 2 * sizes.decoder_width * case.source * rows * steps
    weights = (sizes.decoder + sizes.head) * steps
    return seconds + max(
        2 * (weights * rows + products) / machine.flops,
        (weights * number + keys * kept) / machine.bandwidth,
    )


def training_seconds(model: Model, batches: list[dict[str, Tensor]], machine: Machine) -> float:
    """No training on these batches can be faster. Padding is not counted: nobody needs it."""
    sizes = Sizes.of(model)
    multiplied = 0.0
    for batch in batches:
        sources = batch["attention_mask"].sum(-1).double()  # (B,)
        targets = (batch["labels"] != IGNORED_LABEL).sum(-1).double()
        multiplied += sizes.head * count_targets(model, batch)
        if isinstance(model, T5ForConditionalGeneration):
            multiplied += (sizes.encoder + sizes.cross) * float(sources.sum())
            multiplied += sizes.decoder * float(targets.sum())
            multiplied += 2 * sizes.encoder_width * float((sources * sources).sum())
            multiplied += sizes.decoder_width * float((targets * targets + 2 * targets * sources).sum())
        else:
            multiplied += sizes.decoder * float(sources.sum())
            multiplied += sizes.decoder_width * float((sources * sources).sum())
    return 3 * 2 * multiplied / machine.flops
