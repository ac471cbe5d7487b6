"""Checks of steps 7 to 10: T5.

`wrong` maps the sentence of a known mistake to what it computes.
"""

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ftcore.checkpoints.checkpoint import load_model
from ftcore.data.tasks import prompt
from ftcore.data.tokenizer import load_tokenizer
from ftcore.decoding import generate
from ftcore.lessons.attention_steps import mask_bias
from ftcore.lessons.step import Wrong, load_weights, same, same_module, shipped
from ftcore.models import T5Config, T5ForConditionalGeneration
from ftcore.models import t5 as reference
from ftcore.output import few
from ftcore.study import randomize_weights

# Most sizes differ, so that exchanged dimensions do not fit. H * K is not D.
CONFIG = T5Config(
    vocab_size=50,
    d_model=24,
    d_kv=5,
    d_ff=32,
    num_layers=3,
    num_decoder_layers=2,
    num_heads=4,
    relative_attention_num_buckets=12,
    relative_attention_max_distance=40,
    feed_forward_proj="gated-gelu",
    dropout_rate=0.0,
    decoder_start_token_id=0,
)
DISTANCES = torch.arange(-175, 176).view(27, 13)
CONTEXT = (
    "The Nalora has golden sails, while the Vorgea has grey sails. "
    "The Nalora was built in 1847. The Vorgea's first voyage was in 1935."
)
QUESTION = "When was the Nalora built?"
NOT_SHIPPED = "Checked with random weights: those of t5-mini are in a clone of ftcore."


def reference_model() -> T5ForConditionalGeneration:
    """A small random T5 of ftcore, in eval mode."""
    return randomize_weights(T5ForConditionalGeneration(CONFIG)).eval()  # type: ignore[return-value]


def relative_position(module: ModuleType) -> None:
    """Step 7."""
    _rms_norm(module)
    for bidirectional in (False, True):
        for sizes in ((12, 40), (32, 128)):
            _buckets(module, bidirectional, *sizes)
    for bidirectional in (False, True):
        _position_bias(module, bidirectional)


def _rms_norm(module: ModuleType) -> None:
    norm, mine = randomize_weights(reference.T5LayerNorm(6, eps=0.01)), module.RMSNorm(6, eps=0.01)
    load_weights("RMSNorm", mine, norm)
    hidden = torch.randn(2, 5, 6) * 0.2 + 0.1  # small, so that eps counts
    with torch.no_grad():
        same(f"RMSNorm(6) of {tuple(hidden.shape)}", mine(hidden), norm(hidden), _wrong_norms(hidden, norm))

    half = module.RMSNorm(4).half()
    large = torch.full((1, 2, 4), 512.0).half()
    wrong = {"512^2 is infinite in float16. Compute the mean of squares in float32.": 0 * large}
    same("RMSNorm(4) of float16 numbers of 512", half(large), large / 512, wrong)


def _wrong_norms(hidden: Tensor, norm: Any) -> dict[str, Tensor]:
    eps, squares = norm.eps, hidden.square()
    mean, of_all, of_positions = squares.mean(-1, keepdim=True), squares.mean(), squares.mean(1, keepdim=True)
    centred = hidden - hidden.mean(-1, keepdim=True)
    divided_by = {
        "eps is outside of the square root, expected inside.": mean.sqrt() + eps,
        "eps is missing.": mean.sqrt(),
        "It divides by the mean of squares, expected its square root.": mean + eps,
        "The squares are summed, expected their mean.": (squares.sum(-1, keepdim=True) + eps).sqrt(),
        "The mean is that of the whole tensor, expected of each vector: dim=-1.": (of_all + eps).sqrt(),
        "The mean runs over the positions, expected the last dimension: dim=-1.": (of_positions + eps).sqrt(),
    }
    wrong = {sentence: hidden / divisor * norm.weight for sentence, divisor in divided_by.items()}
    return wrong | {
        "The mean is subtracted: this is LayerNorm. RMSNorm subtracts nothing.": norm(centred),
        "The weight is not used.": hidden / (mean + eps).sqrt(),
    }


def _buckets(module: ModuleType, bidirectional: bool, buckets: int, max_distance: int) -> None:
    right = partial(reference.relative_position_bucket, num_buckets=buckets, max_distance=max_distance)
    expected = right(DISTANCES, bidirectional=bidirectional)
    others = right(DISTANCES, bidirectional=not bidirectional)
    reversed_sign = right(-DISTANCES, bidirectional=bidirectional)
    side, other = ("encoder", "decoder") if bidirectional else ("decoder", "encoder")
    wrong = {
        f"These are the {other}'s buckets, expected the {side}'s: bidirectional is {bidirectional}.": others,
        "The sign is reversed: the distance of a key behind the query is negative.": reversed_sign,
        "Keys after the query do not get the upper half of the buckets.": expected % (buckets // 2),
    }
    got = module.relative_position_bucket(DISTANCES.clone(), bidirectional, buckets, max_distance)
    what = f"relative_position_bucket(distance, {bidirectional}, {buckets}, {max_distance})"
    try:
        same(what, got, expected, wrong)
    except Wrong as error:
        if not (isinstance(got, Tensor) and (got.shape, got.dtype) == (expected.shape, expected.dtype)):
            raise
        nearest = DISTANCES.abs().masked_fill(got == expected, 1000).argmin()
        distance, mine, theirs = (int(t.flatten()[nearest]) for t in (DISTANCES, got, expected))
        report = f"distance {distance}: bucket {mine}, expected {theirs}"
        raise Wrong(str(error), report, error.causes) from None


def _position_bias(module: ModuleType, bidirectional: bool) -> None:
    table = nn.Embedding(12, 4)
    right, other = (
        reference.relative_position_bias(table, 23, 23, 40, bidirectional=each).detach()
        for each in (bidirectional, not bidirectional)
    )
    wrong = {
        f"bidirectional is not passed on: it is {bidirectional} here.": other,
        "Rows and columns are swapped: a row is a query, and distance is key minus query.": right.mT,
    }
    got = module.relative_position_bias(table, 23, bidirectional, 40)
    same(f"relative_position_bias(table, 23, {bidirectional}, 40)", got, right, wrong)


def t5_encoder(module: ModuleType) -> None:
    """Step 8."""
    encoder: Any = reference_model().encoder
    block = encoder.block[0]
    self_attention, feed_forward = block.layer
    hidden, bias = torch.randn(2, 7, 24), torch.randn(1, 4, 7, 7)
    visible = torch.arange(7) < torch.tensor([7, 5])[:, None, None, None]  # (B, 1, 1, T)
    inputs, theirs = (hidden, visible, bias), (hidden, bias + mask_bias(visible))

    _t5_attention(module, self_attention.SelfAttention, *inputs)
    gated = feed_forward.DenseReluDense
    same_module("FeedForward", module.FeedForward(CONFIG), gated, hidden, _wrong_gates(hidden, gated))
    layer = module.SelfAttentionLayer(CONFIG, True)
    same_module("SelfAttentionLayer", layer, self_attention, inputs, reference_inputs=theirs)
    same_module("FeedForwardLayer", module.FeedForwardLayer(CONFIG), feed_forward, hidden)
    same_module("EncoderBlock", module.EncoderBlock(CONFIG, True), block, inputs, reference_inputs=theirs)

    ids, mask = padded_ids(20)
    mine = module.Encoder(CONFIG, nn.Embedding(50, 24))
    _has_one_table("Encoder", mine)
    same_module("Encoder", mine, encoder, (ids, mask), where=mask)


def _t5_attention(module: ModuleType, attention: Any, hidden: Tensor, visible: Tensor, bias: Tensor) -> None:
    mine, inputs = module.T5Attention(CONFIG, True), (hidden, hidden, visible, bias)
    theirs = (hidden, *attention.keys_values(hidden), bias + mask_bias(visible))
    same_module("T5Attention", mine, attention, inputs, reference_inputs=theirs)

    source, everything = torch.randn(2, 7, 24), torch.ones(2, 1, 1, 7, dtype=torch.bool)
    (key, value), (own_key, own_value) = (attention.keys_values(states) for states in (source, hidden))
    wrong = {
        "Keys and values are computed from hidden, expected from source.": (own_key, own_value),
        "Keys are computed from hidden, expected from source.": (own_key, value),
        "Values are computed from hidden, expected from source.": (key, own_value),
    }
    values = {sentence: attention(hidden, *states, None) for sentence, states in wrong.items()}
    got, right = mine(hidden, source, everything), attention(hidden, key, value, None)
    same("T5Attention(hidden, source, visible)", got, right, values)


def _wrong_gates(hidden: Tensor, gated: Any) -> dict[str, Tensor]:
    half, other, gelu = gated.wi_0(hidden), gated.wi_1(hidden), gated.act
    products = {
        "gelu is applied to wi_1's half, expected wi_0's.": half * gelu(other),
        "gelu is applied to both halves, expected wi_0's only.": gelu(half) * gelu(other),
        "gelu is applied to the product, expected to wi_0's half.": gelu(half * other),
        "gelu is missing.": half * other,
        "The halves are added, expected multiplied.": gelu(half) + other,
        "wi_1's half is missing.": gelu(half),
    }
    return {sentence: gated.wo(product) for sentence, product in products.items()}


def _has_one_table(what: str, stack: nn.Module) -> None:
    """Raise Wrong if blocks after block 0 have a table of position biases."""
    tables = [name for name, _ in stack.named_parameters() if "relative_attention_bias" in name]
    if len(tables) > 1:
        cause = "Only block 0 has a table of position biases. All blocks add its bias."
        raise Wrong(f"{what} has {len(tables)} tables: {few(tables, 3)}.", causes=[cause])


def padded_ids(length: int) -> tuple[Tensor, Tensor]:
    """Ids (2, length) and their mask; the second row ends in padding."""
    ids, mask = torch.randint(2, 50, (2, length)), torch.ones(2, length, dtype=torch.long)
    ids[1, 2 * length // 3 :] = mask[1, 2 * length // 3 :] = 0
    return ids, mask


def t5_decoder(module: ModuleType) -> None:
    """Step 9."""
    model = reference_model()
    block: Any = model.decoder.block[0]
    cross_attention = block.layer[1]
    hidden, source, bias = torch.randn(2, 7, 24), torch.randn(2, 9, 24), torch.randn(1, 4, 7, 7)
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    source_visible = torch.arange(9) < torch.tensor([9, 6])[:, None, None, None]  # (B, 1, 1, S)

    inputs: tuple[Tensor, ...] = (hidden, source, source_visible)
    theirs: tuple[Tensor, ...] = (hidden, source, mask_bias(source_visible))
    wrong, mine = _wrong_cross_attentions(cross_attention, *theirs), module.CrossAttentionLayer(CONFIG)
    same_module("CrossAttentionLayer", mine, cross_attention, inputs, wrong, reference_inputs=(*theirs, None))

    inputs = (hidden, visible, bias, source, source_visible)
    theirs = (hidden, bias + mask_bias(visible), source, mask_bias(source_visible))
    wrong, mine = _wrong_orders(block, *theirs), module.DecoderBlock(CONFIG, True)
    same_module("DecoderBlock", mine, block, inputs, wrong, reference_inputs=(*theirs, None))

    # First with as many source tokens as decoder tokens, where exchanged masks fit and can be named.
    for source_length in (18, 11):
        _decoder(module, model, source_length)


def _wrong_cross_attentions(
    layer: Any, hidden: Tensor, source: Tensor, source_bias: Tensor
) -> dict[str, Tensor]:
    normed, attention = layer.layer_norm(hidden), layer.EncDecAttention
    twice = attention.keys_values(layer.layer_norm(source))
    return {
        "The source is normalized again. Only hidden is.": hidden + attention(normed, *twice, source_bias),
        "The source's padding is seen.": hidden + attention(normed, *attention.keys_values(source), None),
    }


def _wrong_orders(
    block: Any, hidden: Tensor, bias: Tensor, source: Tensor, source_bias: Tensor
) -> dict[str, Tensor]:
    self_attention, cross_attention, feed_forward = block.layer
    crossed = cross_attention(hidden, source, source_bias, None)
    attended = self_attention(hidden, bias)
    return {
        "Cross-attention comes first, expected self-attention.": feed_forward(self_attention(crossed, bias)),
        "Cross-attention is missing.": feed_forward(attended),
        "The feed-forward layer comes before cross-attention, expected after it.": (
            cross_attention(feed_forward(attended), source, source_bias, None)
        ),
    }


def _decoder(module: ModuleType, model: T5ForConditionalGeneration, source_length: int) -> None:
    source_ids, mask = padded_ids(source_length)
    ids, source = torch.randint(2, 50, (2, 18)), model.encode(source_ids, mask).detach()
    decoder, mine = model.decoder, module.Decoder(CONFIG, nn.Embedding(50, 24))
    _has_one_table("Decoder", mine)
    causal = torch.ones(18, source_length).tril() * mask[:, None]
    masks: dict[str, tuple[Tensor | None, Tensor | None]] = {  # of the source; of the decoder's tokens
        "Cross-attention has a causal mask. It may see the whole source.": (causal, None),
    }
    if source_length == 18:
        masks |= {
            "The source's padding mask is used in self-attention, expected in cross-attention.": (None, mask),
            "The source's padding mask is used in self-attention too.": (mask, mask),
        }
    wrong = {sentence: partial(decoder, ids, source, *of_call) for sentence, of_call in masks.items()}
    same_module("Decoder", mine, decoder, (ids, source, mask), wrong)


def t5(module: ModuleType) -> str:
    """Step 10."""
    model = reference_model()
    ids, mask = padded_ids(14)
    same_module("T5", module.T5(CONFIG), model, (ids, mask, torch.randint(2, 50, (2, 9))))
    _shift_right(module, model)
    with torch.no_grad():
        model.shared.weight.mul_(0.3)  # with large embeddings, a tied head repeats the last token
    for length in (4, 7):
        _answer(module, model, torch.randint(2, 50, (length,)).tolist())
    return _answer_with_shipped_weights(module)


def _shift_right(module: ModuleType, model: T5ForConditionalGeneration) -> None:
    labels = torch.tensor([[7, 8, 9, 1], [5, 1, -100, -100]])
    right, filled = model.shift_right(labels), labels.clamp(min=0)
    wrong = {
        "The labels are not shifted: the decoder would see the token that it has to predict.": filled,
        "The labels are shifted to the left, expected to the right.": filled.roll(-1, 1),
        "The last label comes round to the front, expected the start token.": filled.roll(1, 1),
        "-100 is not replaced by the pad id.": torch.cat([0 * labels[:, :1], labels[:, :-1]], 1),
        "The start token is put in front, but the last label is not dropped.": F.pad(filled, (1, 0)),
    }
    same("shift_right(labels)", module.shift_right(labels.clone()), right, wrong)


def _answer(module: ModuleType, model: T5ForConditionalGeneration, ids: list[int]) -> None:
    endless = reference_answer(model, ids, 12, end=None)
    never = min(set(range(50)) - set(endless))
    wrong = {
        "The start token is returned too.": [0, *endless],
        "It is a token too short. The start token does not count.": endless[:-1],
        "It is a token too long.": reference_answer(model, ids, 13, end=None),
    }
    got = module.answer(model, list(ids), 12, end=never)
    same(f"answer(model, {ids}, 12, end={never})", got, endless, wrong)

    end = endless[5]
    right = reference_answer(model, ids, 12, end)
    wrong = {"It goes on after `end`.": endless, "`end` is not returned.": right[:-1]}
    same(f"answer(model, {ids}, 12, end={end})", module.answer(model, list(ids), 12, end=end), right, wrong)


def reference_answer(
    model: T5ForConditionalGeneration, ids: list[int], most: int, end: int | None = 1
) -> list[int]:
    """The tokens of ftcore's greedy search for a source, at most `most`."""
    found = generate(model, torch.tensor([ids]), max_new_tokens=most, eos_token_id=end)
    return found[0, 1:].tolist()


def _answer_with_shipped_weights(module: ModuleType) -> str:
    """Load t5-mini-qa, merged with its base model, into the student's T5."""
    directory, adapter = shipped("t5-mini"), shipped("t5-mini-qa")
    if directory is None or adapter is None:
        return NOT_SHIPPED
    model = load_model(adapter)
    mine = module.T5(model.config).eval()
    load_weights("T5", mine, model)
    found = shipped_answer(module, mine, model, directory)
    return f"{CONTEXT}\n{QUESTION}\nYour T5 with the weights of t5-mini-qa answers: {found}"


def shipped_answer(module: ModuleType, mine: nn.Module, model: Any, directory: Path) -> str:
    """The student's answer to QUESTION, by `module.answer`; raises Wrong if it is not the reference's."""
    tokenizer = load_tokenizer(directory)
    ids = tokenizer.encode(prompt("qa", decoder_only=False, context=CONTEXT, question=QUESTION))
    got = module.answer(mine, list(ids), 20)
    same("The answer with the weights of t5-mini-qa", got, reference_answer(model, ids, 20))
    return tokenizer.decode(got)
