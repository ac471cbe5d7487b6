# ruff: noqa: B018, E402

# %% [markdown]
# # Test your layer
#
# The best way to understand attention is to write it. This notebook does so from memory, with a mistake
# that many of us have made, and lets ftcore find it. Then your layer moves into a trained GPT-2.

# %%
import os
from pathlib import Path

import torch
from torch import nn

import ftcore
from ftcore import load_model, load_tokenizer
from ftcore.models import GPT2Config
from ftcore.models.gpt2 import Conv1D, GPT2Attention
from ftcore.study import compare_modules, randomize_weights

os.chdir(Path(ftcore.__file__).parents[1])  # the clone, with the weights in it
torch.manual_seed(0)

# %% [markdown]
# ## From memory
#
# GPT-2's attention: B rows of T tokens, vectors of width D. Each head compares its query with the keys of
# all tokens so far, and mixes their values. `scores` is a method of its own, so that the mistake can be
# mended below.


# %%
class MyAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = Conv1D(width, 3 * width)
        self.out = Conv1D(width, width)

    def forward(self, hidden, *_):  # (B, T, D)
        rows, length, width = hidden.shape
        per_head = (rows, length, self.heads, width // self.heads)
        qkv = self.qkv(hidden).chunk(3, dim=-1)
        q, k, v = (part.view(per_head).transpose(1, 2) for part in qkv)  # (B, H, T, K)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = self.scores(q, k).masked_fill(future, float("-inf")).softmax(dim=-1)  # (B, H, T, T)
        return self.out((weights @ v).transpose(1, 2).reshape(rows, length, width))

    def scores(self, q, k):
        return q @ k.transpose(-2, -1)


# %% [markdown]
# It runs, and its output has the right shape. That is why such mistakes survive.

# %%
hidden = torch.randn(2, 20, 48)
MyAttention(48, 4)(hidden).shape

# %% [markdown]
# ## Compare
#
# ftcore's own layer is the reference. Both get the same weights and the same input, and every module inside
# is compared, forward and backward. `rename` says which of your modules is which of the reference.

# %%
reference = randomize_weights(GPT2Attention(GPT2Config(n_embd=48, n_head=4), layer=0))
names = {"qkv": "c_attn", "out": "c_proj"}


def compare(mine):
    return compare_modules(
        mine, reference, hidden, reference_inputs=(hidden, None, None), rename=names, copy_weights=True
    )


compare(MyAttention(48, 4))

# %% [markdown]
# The first divergent module is the last projection, and its input differs already: the mistake is made
# between the two projections. The likely cause has a name. To find it, ftcore makes known mistakes in the
# reference, one at a time, until its output equals yours.
#
# ## Mend it


# %%
class Scaled(MyAttention):
    def scores(self, q, k):
        return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5


compare(Scaled(48, 4))

# %% [markdown]
# `assert_same_as_reference` is the same as a unit test: it raises an AssertionError with the table.
#
# ## Does it matter?
#
# Move both layers into a trained GPT-2, with its weights, and let it read a message. The loss of a token
# says how surprised the model is by it.

# %%
from ftcore.analysis import draw_token_losses, inputs_of, token_losses, token_names


def gpt2_with(layer):
    """The shipped GPT-2 with your layer in every block."""
    model = load_model("weights/gpt2-mini")
    for block in model.transformer.h:
        mine = layer(model.config.n_embd, model.config.n_head)
        mine.qkv, mine.out = block.attn.c_attn, block.attn.c_proj
        block.attn = mine
    return model.eval()


original, tokenizer = load_model("weights/gpt2-mini"), load_tokenizer("weights/gpt2-mini")
message = "everyone can see that i feel brave because my painting was chosen for the show"
inputs = inputs_of(original, tokenizer, message)
losses = {layer.__name__: token_losses(gpt2_with(layer), inputs)[0] for layer in (Scaled, MyAttention)}
{name: f"{loss.mean():.3f} nats per token" for name, loss in losses.items()}

# %%
draw_token_losses(
    losses["MyAttention"] - losses["Scaled"], token_names(tokenizer, inputs["input_ids"][0, 1:])
)

# %% [markdown]
# The bars are the loss that the mistake adds to each token; some tokens even get easier. The model still
# works, only worse, and no error message would ever have told you. With your mended layer it is the
# original GPT-2, up to rounding:

# %%
with torch.no_grad():
    difference = gpt2_with(Scaled)(**inputs) - original(**inputs)
difference.abs().max()

# %% [markdown]
# ## Another layer
#
# Any two modules can be compared. T5's norm, with a common misunderstanding:

# %%
norm = load_model("weights/t5-mini").get_submodule("encoder.block.0.layer.0.layer_norm")
compare_modules(nn.LayerNorm(128), norm, torch.randn(2, 5, 128), copy_weights=True)

# %% [markdown]
# ## Next
#
# - Break `Scaled` in another way and compare again: a mask that lets each token see the next one, heads
#   that are not transposed back, a softmax over the wrong axis.
# - `python -m ftcore.course` goes from an empty file to both models, and checks each step like this.
# - [Test your own layer](../../docs/test_your_own_layer.md) explains the report, and lists the known
#   mistakes.
