"""Checks of steps 13 and 14: a training step; low-rank adapters.

`wrong` maps the sentence of a known mistake to what it computes.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model
from ftcore.lessons import t5_steps
from ftcore.lessons.generation_steps import VOCABULARY
from ftcore.lessons.generation_steps import reference_model as gpt2_model
from ftcore.lessons.step import Wrong, load_weights, same, same_module, shipped
from ftcore.lora import load_adapter
from ftcore.lora.lora import LoRALayer, add_lora, lora_layers, merge_lora
from ftcore.output import few
from ftcore.training import optim

MAX_NORM = 1.0
RATES = (0.03, 0.02, 0.01)  # learning rates of three steps


def training(module: ModuleType) -> None:
    """Step 13."""
    _loss(module)
    for scale in (3.0, 0.1):  # above and below the limit
        _clipping(module, scale)
    _adamw(module)
    for warmup, total in ((3, 10), (4, 7)):
        _schedule(module, warmup, total)
    _three_steps(module)


def _loss(module: ModuleType) -> None:
    logits, labels = torch.randn(2, 6, VOCABULARY), torch.randint(0, VOCABULARY, (2, 6))
    labels[0, 4:] = labels[1, :3] = -100
    each = F.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")  # 0 at -100
    counts = (labels[:, 1:] != -100).sum(1)
    wrong = {
        "Logits at t are compared with the label at t: expected with the label at t + 1.": (
            F.cross_entropy(logits.mT, labels)
        ),
        "Logits at t + 1 are compared with the label at t: expected the other way round.": (
            F.cross_entropy(logits[:, 1:].mT, labels[:, :-1])
        ),
        "The sum is divided by all positions. It is a mean over those with a label.": each.mean(),
        "The mean of each row's mean: expected one mean over the labels of all rows.": (
            (each.sum(1) / counts).mean()
        ),
        "Losses are summed, expected their mean.": each.sum(),
    }
    right = each.sum() / counts.sum()
    same("next_token_loss(logits, labels)", module.next_token_loss(logits, labels), right, wrong)


def _clipping(module: ModuleType, scale: float) -> None:
    gradients = [scale * torch.randn(4, 3), scale * torch.randn(5)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    parameters.append(nn.Parameter(torch.zeros(2)))  # unused: without a gradient
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient.clone()
    norm = flat(gradients).norm()
    got = module.clip_gradients(iter(parameters), MAX_NORM)
    clipped = flat([parameter.grad for parameter in parameters if parameter.grad is not None])
    all_gradients, factor = flat(gradients), MAX_NORM / norm
    alone = [gradient * (MAX_NORM / gradient.norm()).clamp(max=1) for gradient in gradients]
    wrong = {
        "Each parameter is clipped alone. The norm is that of all gradients together.": flat(alone),
        "Gradients with a norm below max_norm are scaled up. They stay as they are.": all_gradients * factor,
        "Each number is clipped alone, which changes the direction.": all_gradients.clamp(
            -MAX_NORM, MAX_NORM
        ),
        "The square root of the norm is missing.": all_gradients * (MAX_NORM / norm**2).clamp(max=1),
        "The gradients are unchanged. Scale `.grad` in place; and `parameters` may be a generator, which "
        "yields its items only once.": all_gradients,
    }
    what = f"clip_gradients of gradients with norm {norm:.2f} to {MAX_NORM}"
    same(f"After {what}, the gradient", clipped, all_gradients * factor.clamp(max=1), wrong)
    same(what, got, norm, {"The norm after clipping is returned, expected that before.": clipped.norm()})


def _adamw(module: ModuleType) -> None:
    options: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 0.01, "weight_decay": 0.5}
    wrong: dict[str, dict[str, Any]] = {
        "The bias correction is missing.": {"corrected": False},
        "t is 0 in the first step, expected 1.": {"t": -1},
        "Weight decay is added to the gradient (L2), expected apart from it.": {"decoupled": False},
        "Weight decay is not multiplied by the learning rate.": {"decay_times_lr": False},
        "There is no weight decay.": {"weight_decay": 0.0},
        "eps is inside of the root, expected outside.": {"eps_inside": True},
        "beta1 and beta2 are exchanged.": {"betas": (0.95, 0.8)},
    }
    initial = [torch.randn(4, 3), torch.randn(5)]
    gradients = [[torch.randn_like(weight) for weight in initial] for _ in RATES]
    for steps in (1, 3):
        mine = [nn.Parameter(weight.clone()) for weight in initial]
        optimizer = module.AdamW(iter(mine), **options)
        for lr, of_step in zip(RATES, gradients[:steps], strict=False):
            for weight, gradient in zip(mine, of_step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step(lr)
        optimize = partial(_optimized, flat(initial), [flat(of_step) for of_step in gradients[:steps]])
        values = {sentence: partial(optimize, **(options | change)) for sentence, change in wrong.items()}
        same(f"The weights after AdamW's step {steps}", flat(mine), optimize(**options), values)


def _optimized(weights: Tensor, gradients: Iterable[Tensor], **options: Any) -> Tensor:
    """The weights after a step of AdamW with each of these gradients."""
    optimizer = AdamW(**options)
    for lr, gradient in zip(RATES, gradients, strict=False):
        weights = optimizer.step(weights, gradient, lr)
    return weights


@dataclass
class AdamW:
    """AdamW over one vector of weights, like torch's; with other options, with a mistake."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    t: int = 0  # of the step before the first
    corrected: bool = True
    decoupled: bool = True
    decay_times_lr: bool = True
    eps_inside: bool = False
    mean: Tensor | float = 0.0
    mean_square: Tensor | float = 0.0

    def step(self, weights: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """The new weights, of the same shape."""
        beta1, beta2 = self.betas
        self.t += 1
        decay = (lr if self.decay_times_lr else 1.0) * self.weight_decay * weights
        if not self.decoupled:
            gradient, decay = gradient + self.weight_decay * weights, torch.zeros(())
        self.mean = beta1 * self.mean + (1 - beta1) * gradient
        self.mean_square = beta2 * self.mean_square + (1 - beta2) * gradient**2
        mean, mean_square = self.mean, self.mean_square
        if self.corrected:
            mean = mean / torch.tensor(1 - beta1**self.t)  # a tensor: t = 0 divides by 0
            mean_square = mean_square / torch.tensor(1 - beta2**self.t)
        root = (mean_square + self.eps).sqrt() if self.eps_inside else mean_square.sqrt() + self.eps
        return weights - decay - lr * mean / root


def _schedule(module: ModuleType, warmup: int, total: int) -> None:
    peak = 0.6

    def right(step: int, total: int = total) -> float:
        return optim.learning_rate(step, peak=peak, schedule="linear", warmup_steps=warmup, total_steps=total)

    wrong_rates: dict[str, Callable[[int], float]] = {
        "The first step has the learning rate 0: expected (step + 1) / warmup.": (
            lambda step: peak * step / warmup if step < warmup else right(step)
        ),
        "Steps are counted from 1, expected from 0.": lambda step: right(max(step - 1, 0)),
        "The fall begins at step 0. It begins after the warm-up, at the peak.": (
            lambda step: right(step) if step < warmup else peak * (total - step) / total
        ),
        "It falls to 0 in the last step, expected one step later.": lambda step: right(step, total - 1),
        "There is no warm-up.": lambda step: peak * (total - step) / total,
        "There is no fall after the warm-up.": lambda step: right(min(step, warmup)),
    }

    def rates(rate: Callable[[int], float]) -> Tensor:
        return torch.tensor([rate(step) for step in range(total)])

    what = f"learning_rate(step, {peak}, {warmup}, {total})"
    got = [module.learning_rate(step, peak, warmup, total) for step in range(total)]
    if None in got:
        raise Wrong(f"{what} returns None for step {got.index(None)}. Is its return missing?")
    wrong = {sentence: rates(rate) for sentence, rate in wrong_rates.items()}
    same(f"{what} of all steps", torch.tensor(got), rates(right), wrong)


def _three_steps(module: ModuleType) -> None:
    # float64, since AdamW divides a gradient that is 0 up to rounding, as a key bias's, by itself.
    initial = gpt2_model(layers=1).double()
    batches = [torch.randint(0, VOCABULARY, (2, 9)) for _ in RATES]
    run = partial(_trained, initial, batches)
    wrong = {
        "Gradients of the last step are added to the new ones: zero them before backward().": (
            partial(run, zeroes=False)
        ),
        "Gradients are not clipped before the optimizer's step.": partial(run, max_norm=torch.inf),
        "The learning rate of the first step is used in all.": partial(run, rates=RATES[:1] * 3),
    }
    model = gpt2_model(layers=1).double()
    optimizer = module.AdamW(model.parameters())
    for lr, batch in zip(RATES, batches, strict=True):
        expected = _next_token_loss(model, batch)
        got = module.training_step(model, optimizer, batch, batch.clone(), lr, MAX_NORM)
        if not isinstance(got, float):
            raise Wrong(f"training_step returns a {type(got).__name__}, expected a float: loss.item().")
        same("The loss that training_step returns", torch.tensor(got), torch.tensor(expected.item()))
    change = flat(model.parameters()) - flat(initial.parameters())
    same("The change of the weights after three training steps", change, run(), wrong)


def _next_token_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch)[:, :-1].mT, batch[:, 1:])


def _trained(
    model: nn.Module,
    batches: Sequence[Tensor],
    *,
    zeroes: bool = True,
    max_norm: float = MAX_NORM,
    rates: Sequence[float] = RATES,
) -> Tensor:
    """How much all weights change in one step for each batch; with other options, with a mistake."""
    model, optimizer = copy.deepcopy(model), AdamW()
    initial = weights = flat(model.parameters())
    for lr, batch in zip(rates, batches, strict=True):
        if zeroes:
            model.zero_grad()
        _next_token_loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        gradient = flat(weight.grad for weight in model.parameters() if weight.grad is not None)
        weights = optimizer.step(weights, gradient, lr)
        nn.utils.vector_to_parameters(weights, model.parameters())
    return weights - initial


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All numbers of these tensors, (N,)."""
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def lora(module: ModuleType) -> str:
    """Step 14."""
    _lora_linear(module)
    reference = t5_steps.reference_model()
    mine = import_module("step10_t5").T5(t5_steps.CONFIG).eval()
    load_weights("T5", mine, reference)
    (ids, mask), decoder_ids = t5_steps.padded_ids(12), torch.randint(2, 50, (2, 9))
    inputs = (ids, mask, decoder_ids)

    add_lora(reference, rank=3, alpha=12, targets=["q", "wo"])
    module.add_lora(mine, 3, 12.0, ["q", "wo"])
    _trains_adapters_alone(mine, reference)
    for layer in lora_layers(reference).values():
        nn.init.normal_(layer.lora_B.weight, std=0.1)
    same_module("T5 with LoRA", mine, reference, inputs)
    module.merge_lora(mine)
    left = [name for name, part in mine.named_modules() if isinstance(part, module.LoRALinear)]
    if left:
        raise Wrong(f"After merge_lora, {len(left)} layers are still LoRALinear: {few(left, 3)}.")
    same_module("T5 after merge_lora", mine, merge_lora(reference), inputs, load=False)
    return _shipped_adapter(module)


def _lora_linear(module: ModuleType) -> None:
    base = nn.Linear(7, 5, bias=False)
    right = LoRALayer(copy.deepcopy(base), rank=3, alpha=12.0, dropout=0.0)
    mine, inputs = module.LoRALinear(copy.deepcopy(base), 3, 12.0), torch.randn(2, 6, 7)
    if (shape := tuple(mine.lora_A.weight.shape)) == (5, 3):
        cause = "A and B are exchanged. A, (r, in), comes first: it maps in to r; B, (out, r), maps r to out."
        raise Wrong(f"lora_A.weight is {shape}, expected (3, 7).", causes=[cause])
    load_weights("LoRALinear", copy.deepcopy(mine), right)  # names and shapes
    if mine.lora_B.weight.any():
        cause = "lora_B starts at 0, so that the model is unchanged before training."
        raise Wrong("lora_B.weight is not 0 at first.", causes=[cause])
    if not mine.lora_A.weight.any():
        cause = "If A and B are both 0, so are both gradients, and nothing is ever learned."
        raise Wrong("lora_A.weight is 0 at first, expected random numbers.", causes=[cause])

    nn.init.normal_(right.lora_B.weight)
    load_weights("LoRALinear", mine, right)
    plain, update = base(inputs), right.lora_B(right.lora_A(inputs))  # W x, B A x
    wrong = {
        "alpha is not divided by r.": plain + 12 * update,
        "The update is not scaled by alpha / r.": plain + update,
        "The update is scaled by r / alpha.": plain + update / 4,
        "W x is missing.": 4 * update,
        "The sum is scaled, expected only B A x.": 4 * (plain + update),
    }
    expected = right(inputs)
    same("LoRALinear(linear, 3, 12.0)(inputs)", mine(inputs), expected, wrong)
    merged = mine.merged()
    if not isinstance(merged, nn.Linear):
        raise Wrong(f"merged() returns a {type(merged).__name__}, expected the nn.Linear.")
    wrong = {
        "The update is not added to the weight.": plain,
        "The update is not scaled by alpha / r.": plain + update,
        "The update replaces the weight, expected added.": 4 * update,
    }
    same("merged()(inputs)", merged(inputs), expected, wrong)


def _trains_adapters_alone(mine: nn.Module, reference: nn.Module) -> None:
    """Raise Wrong unless `requires_grad` is that of the reference."""
    wrapped = {name for name, _ in reference.named_parameters() if "lora_" in name}
    own = {name: weight.requires_grad for name, weight in mine.named_parameters()}
    if missing := sorted(wrapped - own.keys()):
        raise Wrong(f"add_lora(model, 3, 12.0, ['q', 'wo']) adds no {few(missing, 3)}.")
    if extra := [name for name in own if "lora_" in name and name not in wrapped]:
        raise Wrong(f"add_lora(model, 3, 12.0, ['q', 'wo']) adds {few(extra, 3)}, which are no targets.")
    if trained := [name for name, trains in own.items() if trains and name not in wrapped]:
        cause = "The base is not frozen: requires_grad_(False) before A and B are added."
        raise Wrong(f"After add_lora, requires_grad is still True of {few(trained, 3)}.", causes=[cause])
    if frozen := [name for name in wrapped if not own[name]]:
        cause = "The model is frozen after A and B are added, expected before."
        raise Wrong(f"After add_lora, requires_grad is False of {few(sorted(frozen), 3)}.", causes=[cause])


def _shipped_adapter(module: ModuleType) -> str:
    """Load t5-mini into the student's T5 and t5-mini-qa into its LoRA layers, and let it answer."""
    directory, adapter = shipped("t5-mini"), shipped("t5-mini-qa")
    if directory is None or adapter is None:
        return t5_steps.NOT_SHIPPED
    t5, reference = import_module("step10_t5"), load_model(directory)
    mine = t5.T5(reference.config).eval()
    mine.load_state_dict(reference.state_dict())
    frozen = sum(weight.numel() for weight in reference.parameters())
    load_adapter(reference, adapter)
    module.add_lora(mine, 8, 16.0, ["q", "k", "v", "o", "wi_0", "wi_1", "wo"])
    load_weights("T5 with LoRA", mine, reference)
    trained = sum(weight.numel() for weight in mine.parameters() if weight.requires_grad)
    found = t5_steps.shipped_answer(t5, mine, reference, directory)
    return (
        f"Your T5 with your LoRA layers and the weights of t5-mini-qa, {trained:,} beside {frozen:,} frozen "
        f"ones, answers the same: {found}"
    )
