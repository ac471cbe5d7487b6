"""The lines of the models that compute what the page shows, read from the files that ran.

A line is found by a text that occurs once in its function. After an edit that removes the text, the page
shows the function without a mark.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ftcore.analysis.inputs import num_heads
from ftcore.models import GPT2Config, GPT2LMHeadModel, Model
from ftcore.models.attention import Softmax, attend, attention_mask_bias
from ftcore.models.gpt2 import GPT2MLP, GPT2Attention, GPT2Block, GPT2Model
from ftcore.models.t5 import (
    T5Attention,
    T5Decoder,
    T5DenseActDense,
    T5Encoder,
    T5LayerCrossAttention,
    T5LayerFF,
    T5LayerNorm,
    T5LayerSelfAttention,
    relative_position_bias,
    relative_position_bucket,
)

Passage = tuple[Callable[..., Any], list[str]]  # a function, and a text of each line to mark
Steps = dict[str, list[Passage]]

ATTENTION: Steps = {
    "product": [(attend, ["scores = at_least_float32(query) @"])],
    "softmax": [
        (attend, ["weights = dropout(softmax(scores))"]),
        (Softmax.forward, ["return scores.softmax("]),
    ],
    "mix": [(attend, ["return weights.to(value.dtype) @ value"])],
}
GPT2: Steps = ATTENTION | {
    "input": [(GPT2Model.forward, ["embedded = self.wte(", "hidden = self.drop(embedded + self.wpe("])],
    "norm_attn": [(GPT2Block.forward, ["self.attn(self.ln_1(hidden)"])],
    "norm_mlp": [(GPT2Block.forward, ["self.mlp(self.ln_2(hidden))"])],
    "norm_final": [(GPT2Model.forward, ["return self.ln_f(hidden)"])],
    "qkv": [(GPT2Attention.forward, ["qkv = self.c_attn(hidden)", "query, key, value = ("])],
    "scale": [(GPT2Attention.__init__, ["self.scale = (width"]), ATTENTION["product"][0]],
    "mask": [
        (attend, ["bias = attention_mask_bias(None,", "scores = scores + bias"]),
        (attention_mask_bias, ["visible = visible.tril("]),
    ],
    "write": [
        (GPT2Attention.forward, ["return self.resid_dropout(self.c_proj("]),
        (GPT2Block.forward, ["self.attn(self.ln_1(hidden)"]),
    ],
    "neurons": [(GPT2MLP.forward, ["self.c_proj(self.act(self.c_fc(hidden)))"])],
    "write_mlp": [(GPT2Block.forward, ["self.mlp(self.ln_2(hidden))"])],
}
RMS_NORM: Passage = (T5LayerNorm.forward, ["mean_square = ", "* torch.rsqrt(", "return self.weight * hidden"])


def t5_steps(prefix: str, *, is_gated: bool) -> Steps:
    """Steps of the encoder's attention, the decoder's, or cross-attention."""
    is_cross = prefix == "cross"
    layer: Any = T5LayerCrossAttention if is_cross else T5LayerSelfAttention
    stack: Any = T5Encoder if prefix == "encoder" else T5Decoder
    keys_values = (
        "EncDecAttention.keys_values(source)  # (B" if is_cross else "SelfAttention.keys_values(normed)"
    )
    neurons = "self.act(self.wi_0(hidden)) * self.wi_1(" if is_gated else "self.act(self.wi(hidden))"
    return ATTENTION | {
        "input": [(stack.forward, ["hidden = self.dropout(self.embed_tokens("])],
        "norm_attn": [RMS_NORM, (layer.forward, ["normed = self.layer_norm(hidden)"])],
        "norm_mlp": [RMS_NORM, (T5LayerFF.forward, ["self.layer_norm(hidden)"])],
        "norm_final": [RMS_NORM, (stack.forward, ["self.final_layer_norm(hidden)"])],
        "qkv": [
            (T5Attention.forward, ["query = self.q(hidden)"]),
            (layer.forward, [keys_values]),
            (T5Attention.keys_values, ["split_heads(self.k(states)"]),
        ],
        "scale": [(T5Attention.attend, ["scale=1.0"])],
        "bias": [
            (relative_position_bucket, ["return offset + torch.where("]),
            (relative_position_bias, ["buckets = relative_position_bucket(", "return table(buckets)"]),
        ],
        "mask": [
            (attend, ["scores = scores + bias"]),
            (stack.forward, ["source_bias = attention_mask_bias("])
            if is_cross
            else (stack.forward, ["position_bias = bias if mask is None"]),
        ],
        "write": [
            (T5Attention.forward, ["return self.o(merge_heads("]),
            (layer.forward, ["return hidden + self.dropout("]),
        ],
        "neurons": [(T5DenseActDense.forward, [neurons, "return apply_outside_float16(self.wo"])],
        "write_mlp": [(T5LayerFF.forward, ["return hidden + self.dropout("])],
    }


def steps_of(model: Model) -> dict[str, Steps]:
    """Steps by the prefix of the activations' names."""
    if isinstance(model, GPT2LMHeadModel):
        return {"": GPT2}
    prefixes = ("encoder", "decoder", "cross")
    return {prefix: t5_steps(prefix, is_gated=bool(model.config.is_gated_act)) for prefix in prefixes}


def source_lines(model: Model) -> dict[str, Any]:
    """The functions with their lines, and for each step which of their lines to mark.

    Returns:
        `functions`: file, first line and lines of each; `steps`: by prefix and step, pairs of a function's
        index and the indices of its marked lines; `sizes`: D, H, K, F and V of this model.
    """
    functions: list[Callable[..., Any]] = []

    def marked(function: Callable[..., Any], texts: list[str]) -> list[Any]:
        if function not in functions:
            functions.append(function)
        return [functions.index(function), find_lines(function, texts)]

    steps = {
        prefix: {step: [marked(*passage) for passage in passages] for step, passages in of_prefix.items()}
        for prefix, of_prefix in steps_of(model).items()
    }
    return {"functions": list(map(_source, functions)), "steps": steps, "sizes": sizes(model)}


def _source(function: Callable[..., Any]) -> dict[str, Any]:
    lines, first = inspect.getsourcelines(function)
    file = Path(inspect.getsourcefile(function) or "").name
    return {"file": file, "first": first, "lines": [line.rstrip("\n") for line in lines]}


def find_lines(function: Callable[..., Any], texts: list[str]) -> list[int]:
    """Indices of the lines of the statements with these texts.

    A text that does not occur exactly once is left out.
    """
    lines, _ = inspect.getsourcelines(function)
    found = [[number for number, line in enumerate(lines) if text in line] for text in texts]
    return [
        line for numbers in found if len(numbers) == 1 for line in range(numbers[0], _end(lines, numbers[0]))
    ]


def _end(lines: list[str], start: int) -> int:
    """The line after the statement that begins at `start`: where its brackets are closed."""
    for end in range(start + 1, len(lines) + 1):
        code = "".join(line.partition("#")[0] for line in lines[start:end])
        if sum(map(code.count, "([{")) <= sum(map(code.count, ")]}")):
            return end
    return start + 1


def sizes(model: Model) -> dict[str, int]:
    """The shape letters of models/attention.py that do not depend on the text."""
    config = model.config
    if isinstance(config, GPT2Config):
        width, head_width = config.n_embd, config.n_embd // config.n_head
        inner = 4 * width if config.n_inner is None else config.n_inner
    else:
        width, head_width, inner = config.d_model, config.d_kv, config.d_ff
    return {"D": width, "H": num_heads(model), "K": head_width, "F": inner, "V": config.vocab_size}
