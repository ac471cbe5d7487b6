"""transformers' model and ours behind one interface for comparison.

Both run with explicit attention, which exposes the attention weights, and with the fused kernel.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache

from ftcore.models import KVCache
from ftcore.models.attention import at_least_float32
from ftcore.study.recording import record_calls
from ftcore.training.loss import batch_loss
from ftcore.training.optim import adamw
from tests.helpers.oracle import float64_reference, gpt2_pair, positions, t5_pair
from tests.helpers.parity_configurations import IGNORED, Batch, Configuration

LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1
EPSILON = 1 / 8  # of the optimizers, for gradients with a root mean square of about 1; see docs/parity.md


class Side:
    """A model with its precision."""

    def __init__(self, model: nn.Module, precision: str):
        self.model: Any = model
        self.precision = precision
        self.is_t5 = model.config.is_encoder_decoder

    def computing(self) -> AbstractContextManager:
        if self.precision == "autocast":
            return torch.autocast(next(self.model.parameters()).device.type, torch.bfloat16)
        return nullcontext()

    def loss(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def adamw(self) -> torch.optim.Optimizer:
        raise NotImplementedError

    def trained(
        self, batch: Batch, optimizer: str, scale: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """First gradients, and weights after two steps; the loss is multiplied by `scale`."""
        if optimizer == "AdamW":
            steps = self.adamw()
        else:
            weights = self.model.parameters()
            steps = torch.optim.Adafactor(
                weights, lr=LEARNING_RATE, eps=(EPSILON, 1e-3), weight_decay=WEIGHT_DECAY
            )
        gradients = self.gradients(batch, scale)
        steps.step()
        self.gradients(batch, scale)
        steps.step()
        return gradients, {name: weight.detach() for name, weight in self.model.named_parameters()}

    def gradients(self, batch: Batch, scale: float = 1.0) -> dict[str, Tensor]:
        self.model.zero_grad()
        (self.loss(batch) * scale).backward()
        return {name: weight.grad.clone() for name, weight in self.model.named_parameters()}


class Ours(Side):
    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        with self.computing():
            return self.model(*self._arguments(batch))

    @torch.no_grad()
    def inside(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs of all modules by name; the hooks make attention run the explicit computation."""
        with self.computing():
            calls = record_calls(self.model, self._arguments(batch), {})
        return {call.name: call.value for call in calls if call.value is not None}

    @torch.no_grad()
    def cached(self, batch: Batch, chunks: list[int]) -> Tensor:
        ids, mask, *target = self._arguments(batch)
        cache, parts = KVCache(sum(chunks)), []
        with self.computing():
            if self.is_t5:
                output = self.model.encode(ids, mask)
                ids, seen = target
            for start, end in spans(chunks):
                if self.is_t5:
                    given = (ids[:, start:end], output, mask, seen[:, :end])
                    parts.append(self.model.decode(*given, cache=cache))
                else:
                    parts.append(self.model(ids[:, start:end], mask[:, :end], cache=cache))
        return torch.cat(parts, 1)

    def loss(self, batch: Batch) -> Tensor:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
        with self.computing():
            loss = batch_loss(self.model, given)
        return loss.total / loss.tokens

    def adamw(self) -> torch.optim.Optimizer:
        optimizer = adamw(self.model, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for group in optimizer.param_groups:
            group["eps"] = EPSILON
        return optimizer

    def _arguments(self, batch: Batch) -> tuple[Any, ...]:
        source = (batch.input_ids, batch.attention_mask)
        return (*source, batch.decoder_input_ids, batch.decoder_mask) if self.is_t5 else source


class Theirs(Side):
    def computing(self) -> AbstractContextManager:
        return float64_reference() if self.precision == "float64" else super().computing()

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        self.model.set_attn_implementation("sdpa")
        with self.computing():
            return self.model(**self._arguments(batch)).logits

    @torch.no_grad()
    def inside(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs of all modules by name; attention weights under the names of our softmaxes."""
        self.model.set_attn_implementation("eager")
        outputs: list[Any] = []
        handle = self.model.register_forward_hook(lambda module, args, output: outputs.append(output))
        with self.computing():
            calls = record_calls(self.model, (), self._arguments(batch) | {"output_attentions": True})
        handle.remove()
        [output] = outputs
        found = {call.name: call.value for call in calls if call.value is not None} | {"": output.logits}
        if self.is_t5:
            maps = {
                "encoder.block.{}.layer.0.SelfAttention": output.encoder_attentions,
                "decoder.block.{}.layer.0.SelfAttention": output.decoder_attentions,
                "decoder.block.{}.layer.1.EncDecAttention": output.cross_attentions,
            }
        else:
            maps = {"transformer.h.{}.attn": output.attentions}
        for name, weights in maps.items():
            found |= {f"{name.format(layer)}.softmax": each for layer, each in enumerate(weights)}
        return found

    @torch.no_grad()
    def cached(self, batch: Batch, chunks: list[int]) -> Tensor:
        self.model.set_attn_implementation("sdpa")
        given = self._arguments(batch) | {"use_cache": True}
        parts = []
        with self.computing():
            if self.is_t5:
                source = {"input_ids": given.pop("input_ids"), "attention_mask": given["attention_mask"]}
                given["encoder_outputs"] = self.model.encoder(**source)
                # Their T5's default cache has as many layers as the encoder; these grow as needed.
                given["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
                new, seen = ("decoder_input_ids",), "decoder_attention_mask"
            else:
                given["past_key_values"] = DynamicCache()
                new, seen = ("input_ids", "position_ids"), "attention_mask"
            for start, end in spans(chunks):
                piece = {name: given[name][:, start:end] for name in new} | {seen: given[seen][:, :end]}
                parts.append(self.model(**given | piece).logits)
        return torch.cat(parts, 1)

    def loss(self, batch: Batch) -> Tensor:
        """Their loss; in float64 recomputed from their logits, since GPT-2's rounds them to float32."""
        if self.precision == "float64":
            return self.token_losses(batch).mean()
        with self.computing():
            return self.model(**self._training_arguments(batch)).loss

    def token_losses(self, batch: Batch) -> Tensor:
        """Cross-entropy per token; the loss is their mean."""
        with self.computing():
            logits = self.model(**self._training_arguments(batch)).logits
        labels = batch.labels
        if not self.is_t5:
            logits, labels = logits[:, :-1], labels[:, 1:]
        targets = labels != IGNORED
        return F.cross_entropy(at_least_float32(logits[targets]), labels[targets], reduction="none")

    def adamw(self) -> torch.optim.Optimizer:
        weights = list(self.model.parameters())
        groups = [
            {"params": [weight for weight in weights if weight.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [weight for weight in weights if weight.dim() == 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=LEARNING_RATE, eps=EPSILON, foreach=False
        )

    def _arguments(self, batch: Batch) -> dict[str, Any]:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if self.is_t5:
            target = {
                "decoder_input_ids": batch.decoder_input_ids,
                "decoder_attention_mask": batch.decoder_mask,
            }
            return given | target
        return given | {"position_ids": positions(batch.attention_mask)}

    def _training_arguments(self, batch: Batch) -> dict[str, Any]:
        """With labels, from which T5 derives the decoder's input."""
        self.model.set_attn_implementation("sdpa")
        given = self._arguments(batch) | {"labels": batch.labels}
        return {name: value for name, value in given.items() if not name.startswith("decoder_")}


def spans(chunks: list[int]) -> Iterator[tuple[int, int]]:
    end = 0
    for chunk in chunks:
        start, end = end, end + chunk
        yield start, end


def sides_of(configuration: Configuration) -> tuple[Theirs, Ours, Theirs, Ours]:
    """(theirs in float64, the truth; ours in float64; theirs and ours in the configuration's precision).

    All four have the same weights, rounded to that precision.
    """
    make = t5_pair if configuration.is_t5 else gpt2_pair
    theirs, ours = (
        in_precision(model, configuration.precision)
        for model in make(configuration.settings, configuration.seed)
    )
    truth, witness = copy.deepcopy(theirs).double(), copy.deepcopy(ours).double()
    for module in truth.modules():
        if hasattr(module, "reorder_and_upcast_attn"):
            module.reorder_and_upcast_attn = False  # it upcasts to float32 and refuses float64
    return (
        Theirs(truth, "float64"),
        Ours(witness, "float64"),
        Theirs(theirs, configuration.precision),
        Ours(ours, configuration.precision),
    )


def in_precision(model: nn.Module, precision: str) -> nn.Module:
    """Convert; under float16 T5's `wo` stays float32, as both libraries load it."""
    if precision == "autocast":
        return model
    model = model.to(getattr(torch, precision))
    if precision == "float16":
        for name, module in model.named_modules():
            if name.endswith("DenseReluDense.wo"):
                module.float()
    return model
