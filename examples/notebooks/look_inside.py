# ruff: noqa: B018, E402

# %% [markdown]
# # Look inside
#
# A small T5 reads a passage and answers a question about it. This notebook follows one answer through the
# network: which head looked where, which one caused the answer, and when the model made up its mind.
#
# Everything runs on a laptop in less than a minute, with the weights that come with ftcore. Change the
# passage and run it again.

# %%
import os
from pathlib import Path

import torch

import ftcore
from ftcore import load_model, load_tokenizer
from ftcore.decoding import generate_texts

os.chdir(Path(ftcore.__file__).parents[1])  # the clone, with the weights in it
model, tokenizer = load_model("weights/t5-mini-qa"), load_tokenizer("weights/t5-mini-qa")

PASSAGE = "Marodan lives in Korbrook. Marodan fears wolves. Selorina's home is in Wenhaven."
question = f"question: Where does Selorina live? context: {PASSAGE}"
generate_texts(model, tokenizer, [question])

# %% [markdown]
# ## What the model sees
#
# Tokens, not words: pieces from a vocabulary of 1,200. The names are invented, so the tokenizer has to
# spell them. `inputs` are the arguments of `model(**inputs)`: the question for the encoder, and for the
# decoder the answer so far, which begins with a start token.

# %%
from ftcore.analysis import inputs_of, token_names

inputs = inputs_of(model, tokenizer, question, "Wenhaven")
source = token_names(tokenizer, inputs["input_ids"][0])
target = token_names(tokenizer, inputs["decoder_input_ids"][0])
print(" | ".join(source))
print(" | ".join(target))

# %% [markdown]
# ## Every number has a name
#
# `record` keeps activations while the model runs. Here these are the attention weights of the decoder's
# cross-attention: one matrix for each of its 3 blocks and 4 heads, from the 3 tokens of the answer to the
# tokens of the question.

# %%
from ftcore.study import record

with torch.no_grad(), record(model, "cross.pattern.*") as acts:
    model(**inputs)
acts

# %% [markdown]
# Each row of a matrix sums to 1: it says where a head looks. These are the four heads of the last block.
# The first row decides which word the answer begins with: all four look at `Wen`, the next row at `haven`.

# %%
from ftcore.analysis import draw_attention

draw_attention(acts["cross.pattern.2"], target, source)

# %% [markdown]
# ## Who is responsible?
#
# A head that looks at a word need not do anything with it. But the residual stream is a sum, so we can ask
# how much each head adds to the logit of the right answer, compared with the wrong one, the other town of
# the passage. Red speaks for `Wenhaven`, blue for `Korbrook`: four heads look at the same word, but one of
# them does most of the work.

# %%
from ftcore.analysis import draw_attribution, logit_attribution

right, wrong = (torch.tensor([[tokenizer.encode(town)[0]]]) for town in ("Wenhaven", "Korbrook"))
shares = logit_attribution(model, inputs, right, wrong)
draw_attribution(shares, position=0)

# %% [markdown]
# ## Change one thing
#
# The best evidence is an experiment. Swap the two towns in the passage, and the model gives the other
# answer. Now run it on the swapped passage, but replace one activation by its value on the original
# passage: does the original answer return? Below, for each block of the encoder and each token. 1 means
# that it returns completely.

# %%
from ftcore.analysis import activation_patching, draw_patched, logit_difference

swapped = question.replace("Korbrook", "#").replace("Wenhaven", "Korbrook").replace("#", "Wenhaven")
print(generate_texts(model, tokenizer, [swapped]))

metric = logit_difference(right[0], wrong[0], position=0)
clean, corrupted = inputs_of(model, tokenizer, question), inputs_of(model, tokenizer, swapped)
patched = activation_patching(
    model, clean, corrupted, metric, "encoder.resid_pre.*", over=["positions"], progress=False
)
draw_patched(patched, [f"before block {block}" for block in range(3)], source)

# %% [markdown]
# One token is enough: with its activation at `Wen` the answer returns, before every block. The encoder keeps
# the name of the town at the position of the name.
#
# ## When does it know?
#
# The logit lens asks a GPT-2 after every block: if you had to stop here, what would be the next token?
# Color is its probability. Some tokens are settled at once, others only by the last block.

# %%
from ftcore.analysis import draw_lens
from ftcore.study import logit_lens

gpt2, gpt2_tokenizer = load_model("weights/gpt2-mini"), load_tokenizer("weights/gpt2-mini")
ids = torch.tensor([gpt2_tokenizer.encode("i woke up feeling weary and")])
lens = logit_lens(gpt2, ids)[:, 0]  # (blocks, T, V)
draw_lens(lens, token_names(gpt2_tokenizer, ids[0]), lambda token: gpt2_tokenizer.decode([token], False))

# %% [markdown]
# ## All of it, to click on
#
# The page of `python -m ftcore.explore`, inside of the notebook: every head, the next tokens, the beams,
# and what happens without a head. Run the cell to see it.

# %%
from ftcore.explorer import show

show(model, tokenizer, question, swapped)

# %% [markdown]
# ## Next
#
# - Another passage: change `PASSAGE` and run all cells.
# - [Analyses](../../docs/analyses.md) has the other figures, and six studies made with them.
# - [Hooks](../../docs/hooks.md) lists the names of all activations.
# - [Test your layer](test_your_layer.ipynb) finds the mistake in a layer that you wrote.
