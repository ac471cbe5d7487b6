"""Fine-tune T5 to answer questions about a passage.

    python examples/t5_question_answering.py

Read it from top to bottom. It has the parts of `python -m ftcore.train` in their simplest form: tokenizer,
data set, batches, model, training step, validation step, training loop, and a function that answers a
question about your own text.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from ftcore import load_model, load_tokenizer, save_model
from ftcore.data import prompt, read_records
from ftcore.decoding import generate
from ftcore.metrics import exact_match, f1
from ftcore.training.optim import adamw, learning_rate, set_learning_rate

# 1. Settings ------------------------------------------------------------------------------------------------
#
# To use the real T5-small, change one line: MODEL = "google-t5/t5-small" (needs huggingface_hub),
# or the path of a directory with its files.

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "weights" / "t5-mini")

TRAIN_FILE = ROOT / "examples" / "data" / "qa" / "train.json"
VALID_FILE = ROOT / "examples" / "data" / "qa" / "valid.json"
OUTPUT = Path("runs") / "t5_question_answering"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

INPUT_LENGTH = 256  # maximal tokens of question and context together; longer sources are truncated
OUTPUT_LENGTH = 32  # maximal tokens of an answer
TRAIN_BATCH_SIZE = 32
VALID_BATCH_SIZE = 64
EPOCHS = 3
LEARNING_RATE = 5e-3  # relative to the size of each weight matrix; published T5 were fine-tuned with 1e-3
WARMUP_STEPS = 50
QUESTIONS_TO_ANSWER = 100  # of the validation set, after each epoch

CONTEXT = (
    "Marodan lives in Korbrook. Selorina lives in Wenhaven. "
    "Marodan is a baker and has a grey cat. Selorina plays the cello."
)
QUESTION = "Where does Selorina live?"


# 2. Data set ------------------------------------------------------------------------------------------------
#
# T5 maps a source text to a target text. The source is "question: ... context: ...", the format in which
# Google's checkpoints were trained on such questions; `read_records` builds it. The tokenizer converts a text
# to ids and appends the end-of-sequence token </s>. In the source it marks the end of the input; in the
# target the model learns to generate it, which is how generation stops.


class QuestionAnswering(torch.utils.data.Dataset):
    """Questions with their contexts as source ids, answers as target ids."""

    def __init__(self, path: Path, tokenizer):
        self.records = read_records("qa", path, decoder_only=False)
        self.tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        record = self.records[index]
        return {
            "input_ids": torch.tensor(cut(self.tokenizer.encode(record.source), INPUT_LENGTH)),  # (S)
            "labels": torch.tensor(cut(self.tokenizer.encode(record.target), OUTPUT_LENGTH)),  # (T)
        }


def cut(ids: list[int], length: int) -> list[int]:
    """Truncate to `length` ids, keeping the last one, </s>."""
    return ids if len(ids) <= length else ids[: length - 1] + ids[-1:]


# 3. Batches -------------------------------------------------------------------------------------------------
#
# The rows of a batch have one length, so shorter ones are filled up with <pad>. In the source, the attention
# mask tells tokens (1) from padding (0), to which nothing attends. In the labels, <pad> would be a word like
# any other: the model would learn to predict padding, which is easy, and the loss would be a mean over it. So
# <pad> becomes -100 there, the label that cross_entropy ignores.
#
# T5 may do this by id, since <pad> is no token of an answer. GPT-2 may not, see gpt2_emotion.py.


def collate(examples: list[dict[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Pad examples to the longest of them: input_ids and attention_mask (B, S), labels (B, T)."""
    sources = [example["input_ids"] for example in examples]
    targets = [example["labels"] for example in examples]
    input_ids = pad_sequence(sources, batch_first=True, padding_value=pad_id)
    labels = pad_sequence(targets, batch_first=True, padding_value=pad_id)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != pad_id).long(),
        "labels": labels.masked_fill(labels == pad_id, -100),
    }


# 4. Training step -------------------------------------------------------------------------------------------
#
# The decoder input is the answer shifted one position to the right, after a start token: at each position the
# decoder sees the tokens before and predicts the next one (teacher forcing). All positions are computed in
# parallel. As an input, -100 is no token: `shift_right` makes it <pad> again.


def batch_loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the target tokens."""
    batch = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    decoder_input_ids = model.shift_right(batch["labels"])  # (B, T)
    logits = model(batch["input_ids"], batch["attention_mask"], decoder_input_ids)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def training_step(model, optimizer, batch: dict[str, Tensor]) -> float:
    """Forward, backward, clip, step; returns the loss."""
    loss = batch_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# 5. Validation step -----------------------------------------------------------------------------------------
#
# The same loss without dropout and without gradients. A mean of batch means would give more weight to tokens
# in batches with few of them, so the sum of all losses is divided by the number of all target tokens.


def validation_step(model, batch: dict[str, Tensor]) -> tuple[float, int]:
    """(sum of the losses, number) of a batch's target tokens."""
    tokens = int((batch["labels"] != -100).sum())
    with torch.inference_mode():
        return batch_loss(model, batch).item() * tokens, tokens


def validate(model, loader: DataLoader) -> float:
    """Mean loss per target token of the validation set."""
    model.eval()
    sums = [validation_step(model, batch) for batch in loader]
    model.train()
    return sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums)


# 6. Answering -----------------------------------------------------------------------------------------------
#
# The loss measures how well the model predicts the next token of a given answer. To get an answer, the model
# generates it token by token, always the most probable one (greedy search), until </s>.


def respond(model, tokenizer, source: str) -> str:
    """Generate the target of a source."""
    input_ids = torch.tensor([cut(tokenizer.encode(source), INPUT_LENGTH)], device=DEVICE)  # (1, S)
    answer_ids = generate(model, input_ids, max_new_tokens=OUTPUT_LENGTH)  # (1, T)
    return tokenizer.decode(answer_ids[0])


def answer(model, tokenizer, context: str, question: str) -> str:
    """Answer a question about a context."""
    return respond(model, tokenizer, prompt("qa", decoder_only=False, question=question, context=context))


def score(model, tokenizer, data: QuestionAnswering, show: int = 3) -> None:
    """Answer some of the validation questions; print exact match and F1 against the gold answers (SQuAD)."""
    matches, overlaps = [], []
    for number, record in enumerate(data.records[:QUESTIONS_TO_ANSWER]):
        predicted = respond(model, tokenizer, record.source)
        matches.append(exact_match(predicted, record.references))
        overlaps.append(f1(predicted, record.references))
        if number < show:
            question, _ = record.source.split(" context: ")
            print(f"  {question}\n    answer: {predicted!r}   gold: {' | '.join(record.references)!r}")
    print(f"  exact match {np.mean(matches):.2f}, F1 {np.mean(overlaps):.2f} of {len(matches)} answers")


# 7. Training ------------------------------------------------------------------------------------------------


def main() -> None:
    torch.manual_seed(0)

    tokenizer = load_tokenizer(MODEL)
    print(f"tokenizer: {tokenizer.vocab_size} ids, <pad> is {tokenizer.pad_id}, </s> is {tokenizer.eos_id}")
    ids = tokenizer.encode(QUESTION)
    print(f"  {QUESTION!r} is {ids}, which is {tokenizer.decode(ids, skip_special_tokens=False)!r}")

    train_data, valid_data = (
        QuestionAnswering(TRAIN_FILE, tokenizer),
        QuestionAnswering(VALID_FILE, tokenizer),
    )
    pad = partial(collate, pad_id=tokenizer.pad_id)
    train_loader = DataLoader(train_data, TRAIN_BATCH_SIZE, shuffle=True, collate_fn=pad)
    valid_loader = DataLoader(valid_data, VALID_BATCH_SIZE, collate_fn=pad)
    shapes = {name: tuple(tensor.shape) for name, tensor in next(iter(train_loader)).items()}
    print(f"data: {len(train_data)} training questions, {len(valid_data)} validation questions")
    print(f"  a batch: {shapes}")

    model = load_model(MODEL).to(DEVICE)
    print(f"model: {sum(parameter.numel() for parameter in model.parameters()):,} parameters on {DEVICE}")

    print(f"before training: loss {validate(model, valid_loader):.3f}")
    score(model, tokenizer, valid_data)

    optimizer = adamw(model, lr=LEARNING_RATE, weight_decay=0.0, relative=True)
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
        print(f"after epoch {epoch + 1}: loss {validate(model, valid_loader):.3f}")
        score(model, tokenizer, valid_data)

    # 8. Save a checkpoint that ftcore and Hugging Face's transformers can load.
    save_model(model, OUTPUT)
    tokenizer.save_pretrained(OUTPUT)
    print(f"saved in {OUTPUT}")

    # 9. Answer a question about another passage.
    model, tokenizer = load_model(OUTPUT).to(DEVICE), load_tokenizer(OUTPUT)
    print(CONTEXT)
    print(f"  {QUESTION} {answer(model, tokenizer, CONTEXT, QUESTION)}")


if __name__ == "__main__":
    main()
