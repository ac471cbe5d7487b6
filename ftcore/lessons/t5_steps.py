"""Checks of steps 7 to 10: T5."""

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ftcore import load_model, load_tokenizer
from ftcore.cli import few
from ftcore.data.tasks import prompt
from ftcore.decoding import generate
from ftcore.lessons.step import Wrong, load_weights, same, same_module, shipped
from ftcore.models import T5Config, T5ForConditionalGeneration
from ftcore.models import t5 as reference_t5
from ftcore.study import randomize_weights

# Sizes that no two letters share, so that an exchange is an error of shape. H * K is not D.
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
NOT_SHIPPED = "Checked with random weights: weights/ of ftcore's repository is not here."
QUESTION = {
    "context": "The Amberdawn has blue sails, while the Coralwind has red sails. The Amberdawn was built in 1863.",
    "question": "Which ship has red sails?",
}
DISTANCES = torch.arange(-175, 176).view(27, 13)


def reference_model() -> T5ForConditionalGeneration:
    model = T5ForConditionalGeneration(CONFIG)
    randomize_weights(model)
    return model.eval()


def relative_position(module: ModuleType) -> None:
    rms_norm(module)
    buckets(module)
    position_bias(module)


def rms_norm(module: ModuleType) -> None:
    eps = 0.01
    reference = reference_t5.T5LayerNorm(6, eps)
    randomize_weights(reference)
    norm, weight = module.RMSNorm(6, eps), reference.weight.detach()
    load_weights("RMSNorm", norm, reference)
    hidden = torch.randn(2, 5, 6) * 0.2 + 0.1  # small, so that eps matters
    mean_square = hidden.square().mean(-1, keepdim=True)
    mistakes = {
        "The mean is subtracted, as in LayerNorm. RMSNorm subtracts nothing.": F.layer_norm(
            hidden, (6,), weight, None, eps
        ),
        "eps is added outside of the root. It belongs inside: sqrt(mean_square + eps).": weight
        * hidden
        / (mean_square.sqrt() + eps),
        "eps is not added.": weight * hidden / mean_square.sqrt(),
        "The root is missing.": weight * hidden / (mean_square + eps),
        "Squares are summed. RMSNorm takes their mean.": weight
        * hidden
        / (6 * mean_square + eps).sqrt(),
        "The mean runs over positions too. It is over the last dimension alone, with keepdim=True.": weight
        * hidden
        / (hidden.square().mean() + eps).sqrt(),
        "The weight is not multiplied.": hidden / (mean_square + eps).sqrt(),
    }
    same("RMSNorm(hidden)", norm(hidden), reference(hidden), mistakes)

    half, large = module.RMSNorm(4, eps).half(), torch.full((1, 2, 4), 512.0).half()
    overflow = {
        "512 squared is infinite in float16. Compute the mean of squares in float32.": torch.zeros_like(large)
    }
    same("RMSNorm of float16 numbers of 512", half(large), torch.ones_like(large), overflow)


def buckets(module: ModuleType) -> None:
    def right(distance: Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
        return reference_t5.relative_position_bucket(
            distance, bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance
        )

    for bidirectional in (False, True):
        for sizes in ((12, 40), (32, 128)):
            mistakes = {
                "The sign is reversed: distance is key minus query, so a key behind the query has a negative "
                "one.": right(-DISTANCES, bidirectional, *sizes),
                f"These are the buckets of bidirectional={not bidirectional}.": right(
                    DISTANCES, not bidirectional, *sizes
                ),
                "The upper half of the buckets is for keys after the query.": right(
                    DISTANCES, True, *sizes
                ).sub(sizes[0] // 2).remainder(sizes[0]),
                "Distances from max_distance on share the last bucket: n - 1, or n/2 - 1 within a half.": (
                    right(DISTANCES, bidirectional, *sizes) % (sizes[0] - 1)
                ),
            }
            got = module.relative_position_bucket(DISTANCES.clone(), bidirectional, *sizes)
            expected = right(DISTANCES, bidirectional, *sizes)
            what = f"relative_position_bucket(distance, {bidirectional}, {sizes[0]}, {sizes[1]})"
            same_buckets(what, got, expected, mistakes)


def same_buckets(what: str, got: Any, expected: Tensor, mistakes: dict[str, Tensor]) -> None:
    """`same`, with the first distance whose bucket differs."""
    try:
        same(what, got, expected, mistakes)
    except Wrong as wrong:
        if isinstance(got, Tensor) and got.shape == expected.shape and got.dtype == expected.dtype:
            nearest = torch.where(got != expected, DISTANCES.abs(), DISTANCES.numel()).argmin()
            distance, mine, right = (t.flatten()[nearest].item() for t in (DISTANCES, got, expected))
            report = f"distance {distance}: your bucket {mine}, expected {right}"
            raise Wrong(str(wrong), report, wrong.causes) from None
        raise


def position_bias(module: ModuleType) -> None:
    table = nn.Embedding(12, 4)
    for bidirectional in (True, False):

        def right(direction: bool, table: nn.Embedding = table) -> Tensor:
            return reference_t5.relative_position_bias(table, 23, 23, 40, bidirectional=direction)

        mistakes = {
            "Rows and columns are exchanged: rows are queries, and distance is key minus query.": right(
                bidirectional
            ).transpose(-2, -1),
            f"These are the buckets of bidirectional={not bidirectional}.": right(not bidirectional),
        }
        got = module.relative_position_bias(table, 23, bidirectional, 40)
        same(f"relative_position_bias(table, 23, {bidirectional}, 40)", got, right(bidirectional), mistakes)


def t5_encoder(module: ModuleType) -> None:
    encoder: Any = reference_model().encoder
    block = encoder.block[0]
    attention, feed_forward = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
    hidden = torch.randn(2, 7, 24)
    bias = torch.randn(1, 4, 7, 7)
    bias[..., 5:] = -torch.inf

    t5_attention(module, attention, hidden, bias)
    same_module("FeedForward", module.FeedForward(CONFIG), feed_forward, hidden, gates(feed_forward, hidden))
    same_module("SelfAttentionLayer", module.SelfAttentionLayer(CONFIG, True), block.layer[0], (hidden, bias))
    same_module("FeedForwardLayer", module.FeedForwardLayer(CONFIG), block.layer[1], hidden)
    same_module("EncoderBlock", module.EncoderBlock(CONFIG, True), block, (hidden, bias))

    ids, mask = padded_ids(20)
    mine = module.Encoder(CONFIG, nn.Embedding(50, 24))
    has_one_table("Encoder", mine)
    scaled = {"embed_tokens.weight": encoder.embed_tokens.weight * 24**0.5}
    mistakes = {
        "The embedding is multiplied by sqrt(D). T5 does not scale it.": lambda: functional_call(
            encoder, scaled, (ids, mask)
        )
    }
    same_module("Encoder", mine, encoder, (ids, mask), mistakes, where=mask)


def t5_attention(module: ModuleType, attention: Any, hidden: Tensor, bias: Tensor) -> None:
    mine = module.T5Attention(CONFIG, True)
    inputs = (hidden, *attention.keys_values(hidden), bias)
    same_module("T5Attention", mine, attention, (hidden, hidden, bias), reference_inputs=inputs)
    source = torch.randn(2, 9, 24)
    from_source, from_hidden = (attention.keys_values(states) for states in (source, hidden))
    mistakes = {
        "Keys and values are computed from `hidden`, expected from `source`.": attention(
            hidden, *from_hidden, None
        ),
    }
    what = "T5Attention(hidden, source, None)"
    same(what, mine(hidden, source, None), attention(hidden, *from_source, None), mistakes)


def gates(feed_forward: Any, hidden: Tensor) -> dict[str, Tensor]:
    """Mistakes of a gated feed-forward layer."""
    half, other, gelu = feed_forward.wi_0(hidden), feed_forward.wi_1(hidden), feed_forward.act
    inner = {
        "gelu is applied to wi_1, expected to wi_0 alone.": half * gelu(other),
        "gelu is applied to both halves, expected to wi_0 alone.": gelu(half) * gelu(other),
        "gelu is applied to the product, expected to wi_0 alone.": gelu(half * other),
        "gelu is missing.": half * other,
        "The two halves are added, expected multiplied.": gelu(half) + other,
    }
    return {text: feed_forward.wo(value) for text, value in inner.items()}


def has_one_table(what: str, stack: nn.Module) -> None:
    """Raise Wrong if a later block than block 0 has a table of position biases."""
    names = [name for name, _ in stack.named_parameters() if "relative_attention_bias" in name]
    if len(names) > 1:
        cause = "All blocks share the position bias of block 0, and only its attention has a table."
        raise Wrong(f"{what} has {len(names)} tables of position biases: {few(names, 3)}.", causes=[cause])


def padded_ids(length: int) -> tuple[Tensor, Tensor]:
    """Ids (2, length) and their mask; the second row ends in padding."""
    ids, mask = torch.randint(2, 50, (2, length)), torch.ones(2, length, dtype=torch.long)
    ids[1, 2 * length // 3 :] = mask[1, 2 * length // 3 :] = 0
    return ids, mask


def t5_decoder(module: ModuleType) -> None:
    model = reference_model()
    decoder: Any = model.decoder
    block = decoder.block[0]
    cross = block.layer[1]
    hidden, source = torch.randn(2, 7, 24), torch.randn(2, 9, 24)
    source_bias = torch.zeros(2, 1, 1, 9)
    source_bias[1, ..., 6:] = -torch.inf
    mistakes = {
        "`source` goes through layer_norm too. The encoder has normalized it.": cross(
            hidden, cross.layer_norm(source), source_bias, None
        ),
        "`hidden` is not normalized before attention.": hidden
        + cross.EncDecAttention(hidden, *cross.EncDecAttention.keys_values(source), source_bias),
    }
    inputs: tuple[Any, ...] = (hidden, source, source_bias)
    mine = module.CrossAttentionLayer(CONFIG)
    same_module("CrossAttentionLayer", mine, cross, inputs, mistakes, reference_inputs=(*inputs, None))

    bias = torch.randn(1, 4, 7, 7).masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    inputs = (hidden, bias, source, source_bias)
    mine = module.DecoderBlock(CONFIG, True)
    mistakes = {"Cross-attention comes before self-attention, expected after it.": cross_first(block, inputs)}
    same_module("DecoderBlock", mine, block, inputs, mistakes, reference_inputs=(*inputs, None))

    mine = module.Decoder(CONFIG, nn.Embedding(50, 24))
    has_one_table("Decoder", mine)
    for source_length in (18, 11):  # as many as decoder positions first, where exchanged masks fit
        source_ids, mask = padded_ids(source_length)
        ids, source = torch.randint(2, 50, (2, 18)), model.encode(source_ids, mask)
        mistakes = {
            "The source's padding mask is added in self-attention, expected in cross-attention.": lambda: (
                decoder(ids, source, None, mask)
            ),
            "The source's padding mask is added in self-attention too.": lambda: decoder(
                ids, source, mask, mask
            ),
            "Cross-attention has a causal mask. It may read the whole source.": lambda: decoder(
                ids, source, mask[:, None] * torch.ones(18, len(mask[0])).tril()
            ),
        }
        same_module("Decoder", mine, decoder, (ids, source, mask), mistakes if source_length == 18 else {})


def cross_first(block: Any, inputs: tuple[Any, ...]) -> Tensor:
    hidden, bias, source, source_bias = inputs
    self_attention, cross_attention, feed_forward = block.layer
    return feed_forward(self_attention(cross_attention(hidden, source, source_bias, None), bias))


def t5(module: ModuleType) -> str:
    model = reference_model()
    (ids, mask), decoder_ids = padded_ids(14), torch.randint(2, 50, (2, 9))
    mine = module.T5(CONFIG)
    same_module("T5", mine, model, (ids, mask, decoder_ids))
    shift_right(module, model)
    answer(module, model)
    return shipped_answer(module)


def shift_right(module: ModuleType, model: T5ForConditionalGeneration) -> None:
    labels = torch.tensor([[7, 8, 9, 1], [5, 1, -100, -100]])
    filled = labels.clamp(min=0)
    mistakes = {
        "The labels are not shifted: the decoder would see the token that it has to predict.": filled,
        "The labels are shifted to the left, expected to the right.": filled.roll(-1, 1),
        "The row is rotated: the last label comes first, expected the start token.": filled.roll(1, 1),
        "-100 is no token: it becomes the pad id.": model.shift_right(labels.where(labels >= 0, 49)).where(
            labels.roll(1, 1) != -100, -100
        ),
    }
    same("shift_right(labels)", module.shift_right(labels.clone()), model.shift_right(labels), mistakes)


def answer(module: ModuleType, model: T5ForConditionalGeneration) -> None:
    for length in (4, 7, 9):
        ids = torch.randint(2, 50, (1, length))
        right = generate(model, ids, max_new_tokens=12)
        endless = generate(model, ids, max_new_tokens=12, eos_token_id=None)
        eos_id = int(endless[0, length])  # a token that the model does choose
        for end in (1, eos_id):
            right = generate(model, ids, max_new_tokens=12, eos_token_id=end)
            mistakes = {
                "The answer goes on after the end token.": endless,
                "The end token is missing.": right[:, :-1],
                "The start token is missing.": right[:, 1:],
            }
            got = module.answer(model, ids, 12, eos_id=end)
            same(f"answer(model, ids {tuple(ids.shape)}, 12, eos_id={end})", got, right, mistakes)


def shipped_answer(module: ModuleType) -> str:
    """Load t5-mini-qa, merged with its base model, into the student's T5."""
    directory, adapter = shipped("t5-mini"), shipped("t5-mini-qa")
    if directory is None or adapter is None:
        return NOT_SHIPPED
    reference = load_model(adapter)
    mine = module.T5(reference.config).eval()
    mine.load_state_dict(reference.state_dict())
    return question_and_answer(module, mine, reference, directory)


def question_and_answer(module: ModuleType, mine: nn.Module, reference: Any, directory: Path) -> str:
    """What the student's T5 answers; raises Wrong unless the reference answers the same."""
    tokenizer = load_tokenizer(directory)
    ids = torch.tensor([tokenizer.encode(prompt("qa", decoder_only=False, **QUESTION))])
    got = module.answer(mine, ids, 20)
    same("The answer with the weights of t5-mini-qa", got, generate(reference, ids, max_new_tokens=20))
    return f"{QUESTION['context']}\n{QUESTION['question']}\nYour T5: {tokenizer.decode(got[0].tolist())}"
