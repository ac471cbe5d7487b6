"""GPT-2 and T5 as a student writes them: plain nn.Modules in another style than ftcore's, with one mistake.

A mistake is a string, looked for in the line where it is made. `style` is how attention is computed:
"matmul", "einsum" or "sdpa", which has no line for most mistakes. Weights are those of a model of ftcore.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.models.t5 import relative_position_bucket

STYLES = ("matmul", "einsum", "sdpa")
UNKNOWN_MISTAKES = (  # to ftcore.study.causes; `Way.strength` is their size
    *["temperature", "quieter head", "shifted values", "recency"],
    *["scaled residual", "scaled sublayer", "shifted norm"],
)


@dataclass(frozen=True)
class Way:
    """How a student computes: one mistake, and a style."""

    heads: int
    mistake: str = ""
    style: str = "matmul"
    scaled: bool = True  # GPT-2; T5 does not scale
    strength: float = 0.3  # of an unknown mistake

    def split(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, K)"""
        batch, length, width = states.shape
        shape = (batch, length, self.heads, width // self.heads)
        if self.mistake in ("view heads", "never transpose"):
            return states.reshape(batch, self.heads, length, -1)
        if self.mistake in ("width first", "width first everywhere"):
            return torch.einsum("btkh->bhtk", states.reshape(batch, length, -1, self.heads))
        if self.mistake == "K heads":
            return states.reshape(batch, length, -1, self.heads).transpose(1, 2)
        if self.mistake == "one head":
            return states[:, None]
        if self.mistake.startswith("between heads"):
            return states.reshape(shape)
        return states.reshape(shape).permute(0, 2, 1, 3)

    def merge(self, mixed: Tensor, width: int) -> Tensor:
        """(B, H, T, K) -> (B, T, D)"""
        if self.mistake in ("view merged", "never transpose"):
            return mixed.reshape(len(mixed), -1, width)
        if self.mistake in ("width first out", "width first everywhere"):
            return torch.einsum("bhtk->btkh", mixed).flatten(2)
        if self.mistake == "between heads":
            return mixed.flatten(2)
        if self.mistake == "between heads, transposed back":
            return mixed.transpose(1, 2).reshape(mixed.shape[0], -1, width)
        return torch.cat(mixed.unbind(1), dim=-1)

    def scale(self, width: int) -> float:
        d = width // self.heads
        if self.mistake == "scale by D":
            return width**-0.5
        right = d**-0.5 if self.scaled else 1.0
        if self.scaled and self.mistake in ("K heads", "one head"):
            right = (self.heads if self.mistake == "K heads" else width) ** -0.5
        return right * {"no scale": d**0.5, "scale twice": d**-0.5, "late scale": d**0.5}.get(self.mistake, 1)

    def hide(self, scores: Tensor, seen: Tensor, part: str) -> Tensor:
        """Mask the scores by one part of the mask, "causal" or "padding"."""
        how, lowest = self.mistake.removeprefix(f"{part} mask "), torch.finfo(scores.dtype).min
        if how in ("missing", "after softmax"):
            return scores
        if how == "tiny":
            return scores + (1 - seen.float()) * -1e-9
        if how == "reversed":
            return torch.where(seen, lowest, scores)
        if how == "triu":
            return torch.where(seen.mT, scores, -torch.inf)
        if how == "added":
            return scores + seen.float()
        if how == "multiplied":
            return scores * seen
        if how == "ten":
            return scores + (1 - seen.float()) * -10
        if how == "ahead":
            return torch.where(torch.ones_like(seen).tril(1), scores, lowest)
        return torch.where(seen, scores, lowest)

    def see(self, seen: Tensor, part: str) -> Tensor:
        """The boolean mask for F.scaled_dot_product_attention, True = visible."""
        how = self.mistake.removeprefix(f"{part} mask ")
        return {"missing": torch.ones_like(seen), "reversed": ~seen}.get(how, seen)

    def attend(
        self,
        query: Tensor,  # (B, T, D)
        key: Tensor,  # (B, S, D)
        value: Tensor,
        causal: bool = False,
        tokens: Tensor | None = None,  # (B, S), 1 for tokens and 0 for padding
        bias: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D)"""
        width = query.shape[-1]
        q, k, v = (self.split(states) for states in (query, key, value))
        scale = self.scale(width)
        if self.mistake == "temperature":
            scale *= 1 + self.strength
        if self.mistake == "quieter head":
            v = torch.cat([v[:, :1] * (1 - self.strength), v[:, 1:]], dim=1)
        if self.mistake == "shifted values":
            v = v + self.strength * v.roll(1, dims=2)
        if self.mistake == "recency":
            places = self.strength * torch.arange(key.shape[1]).to(q)
            bias = places if bias is None else bias + places
        if self.style == "sdpa" and self.mistake.startswith("between heads"):
            return self.merge(F.scaled_dot_product_attention(q, k, v, is_causal=causal), width)

        past = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool)
        past = past.tril() if causal else past
        is_token = torch.ones(1, 1, 1, key.shape[1], dtype=torch.bool)
        is_token = is_token if tokens is None else tokens[:, None, None].bool()
        if self.style == "sdpa":
            past, is_token = self.see(past, "causal"), self.see(is_token, "padding")
            hidden = torch.zeros(past.shape).to(q).masked_fill(~(past & is_token), torch.finfo(q.dtype).min)
            hidden = hidden if bias is None else hidden + bias
            return self.merge(F.scaled_dot_product_attention(q, k, v, hidden, scale=scale), width)

        if self.style == "einsum":
            scores = torch.einsum("bhtk,bhsk->bhts", q, k) * scale
        else:
            scores = (q * scale) @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        if self.mistake == "scale after bias":
            scores = scores * (width // self.heads) ** -0.5
        if not self.mistake.startswith("between heads"):
            scores = self.hide(scores, past, "causal") if causal else scores
            scores = self.hide(scores, is_token, "padding") if tokens is not None else scores
        axis = {"softmax over queries": -2, "softmax over heads": 1}.get(self.mistake, -1)
        weights = scores.softmax(axis)
        if self.mistake == "causal mask after softmax":
            weights = weights * past
        if self.mistake == "padding mask after softmax":
            weights = weights * is_token
        if self.mistake == "late scale":
            weights = weights * (width // self.heads) ** -0.5
        mixed = torch.einsum("bhts,bhsk->bhtk", weights, v) if self.style == "einsum" else weights @ v
        return self.merge(mixed, width)


class Norm(nn.Module):
    """LayerNorm, or RMSNorm without a bias, from the formula."""

    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = right.weight, getattr(right, "bias", None)
        self.eps = right.eps

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.eps).sqrt() * self.weight
        return x if self.bias is None else x + self.bias


def add(x: Tensor, norm: nn.Module, inner: nn.Module, way: Way, where: str, *others: object) -> Tensor:
    """A sublayer of a block."""
    mistake = way.mistake.removesuffix(f" in {where}")
    if mistake == "scaled residual":
        return x * (1 - way.strength) + inner(norm(x), *others)
    if mistake == "scaled sublayer":
        return x + inner(norm(x), *others) * (1 + way.strength)
    if mistake == "shifted norm":
        return x + inner(norm(x) + way.strength, *others)
    if mistake == "no residual":
        return inner(norm(x), *others)
    if mistake == "norm over residual":
        x = norm(x)
        return x + inner(x, *others)
    if mistake == "post-norm":
        return norm(x + inner(x, *others))
    if mistake == "norm after":
        return x + norm(inner(x, *others))
    if mistake == "no norm":
        return x + inner(x, *others)
    return x + inner(norm(x), *others)


# ----------------------------------------------------------------------------------------------------- GPT-2


class Attention2(nn.Module):
    def __init__(self, right: nn.Module, way: Way) -> None:
        super().__init__()
        self.way, self.right = way, [right]  # a list hides its modules

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        (right,) = self.right
        qkv = x @ right.c_attn.weight + right.c_attn.bias
        if self.way.mistake == "qkv per head":
            per_head = qkv.reshape(*x.shape[:2], self.way.heads, -1).chunk(3, dim=-1)
            q, k, v = (states.flatten(2) for states in per_head)
        else:
            q, k, v = qkv.split(x.shape[-1], dim=-1)
        mixed = self.way.attend(q, k, v, causal=True, tokens=tokens)
        return mixed @ right.c_proj.weight + right.c_proj.bias


class MLP2(nn.Module):
    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.right = [right]

    def forward(self, x: Tensor) -> Tensor:
        (right,) = self.right
        wide = F.gelu(F.linear(x, right.c_fc.weight.T, right.c_fc.bias), approximate="tanh")
        return F.linear(wide, right.c_proj.weight.T, right.c_proj.bias)


class Block2(nn.Module):
    def __init__(self, right: nn.Module, way: Way) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = Norm(right.ln_1), Norm(right.ln_2)
        self.attn, self.mlp = Attention2(right.attn, way), MLP2(right.mlp)
        self.way = way

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        x = add(x, self.ln_1, self.attn, self.way, "attention", tokens)
        norm = self.ln_1 if self.way.mistake == "one norm" else self.ln_2
        return add(x, norm, self.mlp, self.way, "mlp")


class Transformer2(nn.Module):
    def __init__(self, right: nn.Module, way: Way) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(*right.wte.weight.shape), nn.Embedding(*right.wpe.weight.shape)
        self.wte.weight, self.wpe.weight = right.wte.weight, right.wpe.weight
        self.h = nn.ModuleList(Block2(block, way) for block in right.h)
        self.ln_f = Norm(right.ln_f)
        self.mistake = way.mistake

    def forward(self, ids: Tensor, tokens: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(ids) if tokens is None else tokens
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        places = places + 1 if self.mistake == "positions from 1" else places
        x = self.wte(ids)
        if self.mistake == "scaled embedding":
            x = x * x.shape[-1] ** 0.5
        x = x if self.mistake == "no positions" else x + self.wpe(places)
        if self.mistake == "scaled embeddings":
            x = x * x.shape[-1] ** 0.5
        for block in self.h:
            x = block(x, tokens)
        return x if self.mistake == "no final norm" else self.ln_f(x)


class GPT2Student(nn.Module):
    def __init__(self, right: nn.Module, way: Way) -> None:
        super().__init__()
        self.transformer = Transformer2(right.transformer, way)
        self.head = [right.lm_head.weight]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.transformer(input_ids, attention_mask) @ self.head[0].T


# -------------------------------------------------------------------------------------------------------- T5


class Attention5(nn.Module):
    """Self-attention with the position bias that it is given, or attention to a source."""

    def __init__(self, right: nn.Module, way: Way, causal: bool) -> None:
        super().__init__()
        self.way, self.causal, self.right = way, causal, [right]

    def forward(self, x: Tensor, source: Tensor | None, tokens: Tensor | None, bias: Tensor | None) -> Tensor:
        (right,) = self.right
        source = x if source is None else source
        q, k, v = F.linear(x, right.q.weight), F.linear(source, right.k.weight), source @ right.v.weight.T
        return self.way.attend(q, k, v, self.causal, tokens, bias) @ right.o.weight.T


class FF5(nn.Module):
    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.right = [right]

    def forward(self, x: Tensor) -> Tensor:
        (right,) = self.right
        wide = F.gelu(x @ right.wi_0.weight.T, approximate="tanh") * (x @ right.wi_1.weight.T)
        return wide @ right.wo.weight.T


class Block5(nn.Module):
    """A block of the encoder or the decoder; `rename` gives the reference's names."""

    def __init__(self, right: nn.Module, way: Way, causal: bool) -> None:
        super().__init__()
        first, *cross, last = right.layer
        self.way = way
        self.norm1, self.attn = Norm(first.layer_norm), Attention5(first.SelfAttention, way, causal)
        if cross:
            self.norm2, self.cross = (
                Norm(cross[0].layer_norm),
                Attention5(cross[0].EncDecAttention, way, False),
            )
        self.norm3, self.ff = Norm(last.layer_norm), FF5(last.DenseReluDense)

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        tokens: Tensor | None = None,
        source: Tensor | None = None,
        source_tokens: Tensor | None = None,
    ) -> Tensor:
        has_one_norm = self.way.mistake == "one norm"
        x = add(x, self.norm1, self.attn, self.way, "attention", None, tokens, bias)
        if source is not None:
            norm = self.norm1 if has_one_norm else self.norm2
            x = add(x, norm, self.cross, self.way, "cross-attention", source, source_tokens, None)
        return add(x, self.norm1 if has_one_norm else self.norm3, self.ff, self.way, "mlp")


class Stack5(nn.Module):
    def __init__(self, right: nn.Module, way: Way, name: str) -> None:
        super().__init__()
        self.causal, self.mistake, self.name = name == "decoder", way.mistake, name
        self.embed_tokens = nn.Embedding(*right.embed_tokens.weight.shape)
        self.embed_tokens.weight = right.embed_tokens.weight
        self.block = nn.ModuleList(Block5(block, way, self.causal) for block in right.block)
        self.final_layer_norm = Norm(right.final_layer_norm)
        self.table = [right.block[0].layer[0].SelfAttention.relative_attention_bias.weight]

    def position_bias(self, length: int) -> Tensor:
        places = torch.arange(length)
        distance = places[None, :] - places[:, None]
        if self.mistake == "transposed bias":
            distance = -distance
        if self.mistake == "bias off by one":
            distance = distance + 1
        buckets = relative_position_bucket(
            distance,
            bidirectional=not self.causal or self.mistake == "encoder's buckets",
            num_buckets=len(self.table[0]),
            max_distance=128,
        )
        bias = self.table[0][buckets].permute(2, 0, 1)[None]
        return torch.zeros_like(bias) if self.mistake == "no bias" else bias

    def forward(
        self,
        ids: Tensor,
        tokens: Tensor | None = None,
        source: Tensor | None = None,
        source_tokens: Tensor | None = None,
    ) -> Tensor:
        x = self.embed_tokens(ids)
        x = x * x.shape[-1] ** 0.5 if self.mistake == "scaled embedding" else x
        bias = self.position_bias(ids.shape[1])
        for block in self.block:
            x = block(x, bias, tokens, source, source_tokens)
            bias = torch.zeros_like(bias) if self.mistake == "bias in first block" else bias
        return x if self.mistake == f"no final norm in {self.name}" else self.final_layer_norm(x)


class T5Student(nn.Module):
    def __init__(self, right: nn.Module, way: Way) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            Stack5(right.encoder, way, "encoder"),
            Stack5(right.decoder, way, "decoder"),
        )
        self.head = [right.lm_head.weight * (right.config.d_model**-0.5)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None, decoder_input_ids: Tensor) -> Tensor:
        source = self.encoder(input_ids, attention_mask)
        return self.decoder(decoder_input_ids, None, source, attention_mask) @ self.head[0].T


def t5_name(name: str) -> str:
    """A module of T5Student -> the name in the reference."""
    last = 2 if name.startswith(("decoder", "layer.2")) else 1
    theirs = {
        "norm1": "layer.0.layer_norm",
        "attn": "layer.0.SelfAttention",
        "norm2": "layer.1.layer_norm",
        "cross": "layer.1.EncDecAttention",
        "norm3": f"layer.{last}.layer_norm",
        "ff": f"layer.{last}.DenseReluDense",
    }
    *parents, child = name.split(".")
    return ".".join([*parents, theirs.get(child, child)])
