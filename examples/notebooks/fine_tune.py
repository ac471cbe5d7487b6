# ruff: noqa: B018, E402

# %% [markdown]
# # Fine-tune
#
# A small GPT-2 has read many messages about feelings, but was never asked to name one. In 150 steps, well
# under a minute, it learns to. This notebook writes the training loop by hand, so that you can see and
# change every line.

# %%
import os
from pathlib import Path

import torch

import ftcore
from ftcore import load_model, load_tokenizer
from ftcore.decoding import generate_texts

os.chdir(Path(ftcore.__file__).parents[1])  # the clone, with the weights and the data in it
torch.manual_seed(0)
model, tokenizer = load_model("weights/gpt2-mini"), load_tokenizer("weights/gpt2-mini")


def feeling(text):
    """What the model writes after a message."""
    return generate_texts(model, tokenizer, [f"Emotion: {text} ->"], max_new_tokens=6)[0].strip()


MINE = "i still feel carefree when i remember how the sun is shining"
feeling(MINE)

# %% [markdown]
# It names no feeling: it was never told what the arrow means.
#
# ## Data
#
# Each line of the files is a message and its feeling. A `Record` is one example: the source is only read,
# the target is to be learned.

# %%
from ftcore.data import Record


def read(split):
    lines = Path(f"examples/data/emotion/{split}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(";") for line in lines]
    return [Record(f"Emotion: {text} ->", f" {label}", (label,)) for text, label in pairs]


train_records, valid_records = read("train"), read("valid")[:200]
print(len(train_records), "messages to learn from,", len(valid_records), "to check with")
train_records[:3]

# %% [markdown]
# The model reads token ids. GPT-2 has one sequence: the message, then the feeling, then the end token. The
# labels say what to predict, and -100 marks what does not count: the message itself, and the padding that
# makes the rows of a batch equally long.

# %%
from ftcore.data import DataLoader, Dataset

lengths = {"decoder_only": True, "max_source_length": 80, "max_target_length": 8}
train_set, valid_set = (Dataset(records, tokenizer, **lengths) for records in (train_records, valid_records))
loader = DataLoader(train_set, 32, pad_id=tokenizer.pad_id, shuffle=True)

batch = next(iter(loader))
print({name: tuple(tensor.shape) for name, tensor in batch.items()})
print("reads  ", tokenizer.decode(batch["input_ids"][0], skip_special_tokens=False))
print("learns ", tokenizer.decode(batch["labels"][0], skip_special_tokens=False))

# %% [markdown]
# ## Train
#
# Forward, loss, backward, clip, step. The learning rate rises for a few steps and then falls to zero. Run
# `train` with other numbers and see what happens.

# %%
from ftcore.training.loss import batch_loss

STEPS, LEARNING_RATE = 150, 2e-3


def train(model):
    """Train for STEPS batches. Returns the loss of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    model.train()
    losses = []
    while len(losses) < STEPS:
        for batch in loader:
            result = batch_loss(model, batch)
            loss = result.total / result.tokens  # nats per token
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            losses.append(loss.item())
            if len(losses) == STEPS:
                break
    model.eval()
    return losses


losses = train(model)
feeling(MINE)

# %%
from ftcore.training.curves import draw_curves

draw_curves([{"step": step, "train_loss": loss} for step, loss in enumerate(losses, start=1)])

# %% [markdown]
# ## Does it work?
#
# On messages that it has not been trained on. Each row is a feeling, each column what the model called it.

# %%
from ftcore.analysis.figures import draw_matrix
from ftcore.figures import new_figure
from ftcore.training.scoring import mean, score_answers

answers = score_answers(model, tokenizer, valid_set, task="emotion", max_new_tokens=6)
print(f"right: {mean([answer.exact_match for answer in answers]):.1%}")

names = sorted({answer.references[0] for answer in answers})
counts = torch.zeros(len(names), len(names) + 1)
for answer in answers:
    said = answer.prediction.strip()
    counts[names.index(answer.references[0]), names.index(said) if said in names else -1] += 1

figure = new_figure(5, 3.4)
numbers = [[f"{count:.0f}" for count in line] for line in counts.tolist()]
draw_matrix(figure.subplots(), counts, rows=names, columns=[*names, "other"], texts=numbers)
figure

# %% [markdown]
# Now your own. The vocabulary of this little model is small: stay close to the messages above.

# %%
for text in (
    "i feel so happy because the sun is shining",
    "my brother lied to me and i feel furious",
    "i am scared of the storm",
    "i miss my grandmother",
):
    print(f"{feeling(text):10}{text}")

# %% [markdown]
# ## What has changed inside?
#
# The logit lens shows the most likely next token after each block; color is its probability. The last
# column is the arrow, where the answer is due. In the other columns the model used to know how a message
# goes on. Now it ends some of them too early, or writes a piece of the name of a feeling: nothing in the
# training asked it to remember how to write.

# %%
from ftcore.analysis import draw_lens, token_names
from ftcore.study import logit_lens

ids = torch.tensor([tokenizer.encode("Emotion: i am scared of the storm ->")])
lens = logit_lens(model, ids)[:, 0]  # (blocks, T, V)
draw_lens(lens, token_names(tokenizer, ids[0]), lambda token: tokenizer.decode([token], False))

# %% [markdown]
# ## Next
#
# - Keep it: `save_model(model, "runs/feelings")` and `tokenizer.save_pretrained("runs/feelings")` write a
#   directory that `python -m ftcore.generate` and transformers load.
# - Train less of it: `from ftcore.lora import add_lora`, then `add_lora(model, rank=8)` before `train`.
#   With 1.5% of the weights it learns more slowly; raise the learning rate.
# - The real thing: `python -m ftcore.train --help`. [Training](../../docs/training.md) explains the loop,
#   and [LoRA](../../docs/lora.md) the adapters.
