"""Fine-tune GPT-2 on messages about feelings, and generate one.

    python examples/gpt2_emotion.py

Read it from top to bottom. GPT-2 is a language model: it predicts the next token of a text. So each message
becomes a line "Emotion: i feel ...", the model is trained on such lines, and then it continues a prompt.
"""

import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ftcore import load_model, load_tokenizer, save_model
from ftcore.data import read_records
from ftcore.decoding import generate
from ftcore.training.optim import adamw, learning_rate, set_learning_rate

# 1. Settings ------------------------------------------------------------------------------------------------
#
# To use the real GPT-2, change one line: MODEL = "openai-community/gpt2" (needs huggingface_hub),
# or the path of a directory with its files.

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "weights" / "gpt2-mini")

TRAIN_FILE = ROOT / "examples" / "data" / "emotion" / "train.txt"
VALID_FILE = ROOT / "examples" / "data" / "emotion" / "valid.txt"
OUTPUT = Path("runs") / "gpt2_emotion"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

LENGTH = 64  # tokens of a message: longer ones are truncated, shorter ones padded
BATCH_SIZE = 4
EPOCHS = 3
LEARNING_RATE = 2e-4
WARMUP_STEPS = 100
SAVE_EVERY = 500  # steps
KEEP = 2  # number of checkpoints to keep

PROMPT = "Emotion: i didnt feel well"
NEW_TOKENS = 100


# 2. Data set ------------------------------------------------------------------------------------------------
#
# GPT-2 has no pad token, since it was trained without padding. A batch needs one, so the end-of-text token
# <|endoftext|> (EOS) is used for padding too; `tokenizer.pad_id` is the same id.
#
# This is a common trap. Padding must not be trained on, and it is tempting to mask every pad token in the
# labels. But this masks the real EOS as well, since it has the same id; the model never learns to stop, and
# generates without end. So the labels are masked by length: everything up to and including the first EOS is
# kept, and the positions after it are -100, which the loss ignores.


class Messages(torch.utils.data.Dataset):
    """Messages as rows of exactly LENGTH ids."""

    def __init__(self, path: Path, tokenizer):
        self.records = read_records("emotion", path, decoder_only=True)  # "Emotion: {text}"
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = [*self.tokenizer.encode(self.records[index].target), self.tokenizer.eos_id][:LENGTH]
        padding = LENGTH - len(ids)
        return {
            "input_ids": torch.tensor(ids + [self.tokenizer.pad_id] * padding),  # (LENGTH,)
            "attention_mask": torch.tensor([1] * len(ids) + [0] * padding),
            "labels": torch.tensor(ids + [-100] * padding),
        }


# 3. Loss ----------------------------------------------------------------------------------------------------
#
# The labels are the text itself, shifted by one: the prediction at each position is compared with the token
# at the next. The last prediction has no label, and the first token is not predicted.


def batch_loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the next-token predictions."""
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    logits = model(batch["input_ids"], batch["attention_mask"])  # (B, T, V)
    predicted, expected = logits[:, :-1], batch["labels"][:, 1:]
    return F.cross_entropy(predicted.flatten(0, 1), expected.flatten(), ignore_index=-100)


def training_step(model, optimizer, batch: dict[str, Tensor]) -> float:
    """Forward, backward, clip, step; returns the loss."""
    loss = batch_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.inference_mode()
def validate(model, loader) -> float:
    """Mean loss per token of the validation set, without dropout."""
    model.eval()
    total, tokens = 0.0, 0
    for batch in loader:
        count = int((batch["labels"][:, 1:] != -100).sum())
        total += batch_loss(model, batch).item() * count
        tokens += count
    model.train()
    return total / tokens


# 4. Checkpoints ---------------------------------------------------------------------------------------------


def save(model, tokenizer, directory: Path) -> None:
    """Save weights, configuration and tokenizer, for ftcore and transformers to load."""
    save_model(model, directory)
    tokenizer.save_pretrained(directory)


def save_checkpoint(model, tokenizer, step: int) -> None:
    """Save a checkpoint, and remove all but the newest KEEP."""
    save(model, tokenizer, OUTPUT / f"checkpoint-{step:06d}")
    for old in sorted(OUTPUT.glob("checkpoint-*"))[:-KEEP]:
        shutil.rmtree(old)


# 5. Generation ----------------------------------------------------------------------------------------------


def write(model, tokenizer) -> str:
    """PROMPT and up to NEW_TOKENS more. Blocking repeated bigrams prevents loops of greedy search."""
    input_ids = torch.tensor([tokenizer.encode(PROMPT)], device=DEVICE)  # (1, T)
    ids = generate(
        model,
        input_ids,
        max_new_tokens=NEW_TOKENS,
        no_repeat_ngram_size=2,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    return tokenizer.decode(ids[0])


# 6. Training ------------------------------------------------------------------------------------------------


def main() -> None:
    torch.manual_seed(0)

    tokenizer = load_tokenizer(MODEL)
    print(f"tokenizer: {tokenizer.vocab_size} ids, EOS is {tokenizer.eos_id}, pad is {tokenizer.pad_id}")

    train_data, valid_data = Messages(TRAIN_FILE, tokenizer), Messages(VALID_FILE, tokenizer)
    train_loader = torch.utils.data.DataLoader(train_data, BATCH_SIZE, shuffle=True)
    valid_loader = torch.utils.data.DataLoader(valid_data, BATCH_SIZE)
    print(f"data: {len(train_data)} training messages, {len(valid_data)} validation messages, such as")
    print(f"  {train_data.records[0].target!r}")

    model = load_model(MODEL).to(DEVICE)
    print(f"model: {sum(parameter.numel() for parameter in model.parameters()):,} parameters on {DEVICE}")
    print(f"before training: {write(model, tokenizer)!r}")

    for old in OUTPUT.glob("checkpoint-*"):  # from an earlier run
        shutil.rmtree(old)
    optimizer = adamw(model, lr=LEARNING_RATE, weight_decay=0.01)
    total_steps = EPOCHS * len(train_loader)
    step = 0
    model.train()
    for epoch in range(EPOCHS):
        bar = tqdm(train_loader, desc=f"epoch {epoch + 1} of {EPOCHS}", leave=False)
        for batch in bar:
            lr = learning_rate(
                step,
                peak=LEARNING_RATE,
                schedule="linear",
                warmup_steps=WARMUP_STEPS,
                total_steps=total_steps,
            )
            set_learning_rate(optimizer, lr)
            loss = training_step(model, optimizer, batch)
            step += 1
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}")
            if step % SAVE_EVERY == 0:
                save_checkpoint(model, tokenizer, step)
        loss = validate(model, valid_loader)
        print(f"after epoch {epoch + 1}: loss {loss:.3f}, perplexity {math.exp(loss):.2f}")

    # 7. Save, load again, and generate.
    save(model, tokenizer, OUTPUT / "final")
    model, tokenizer = load_model(OUTPUT / "final").to(DEVICE), load_tokenizer(OUTPUT / "final")
    print(f"after training: {write(model, tokenizer)!r}")
    print(f"saved in {OUTPUT / 'final'}")


if __name__ == "__main__":
    main()
