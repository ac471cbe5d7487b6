"""Teach a T5 to answer questions about a passage, one piece at a time.

    python examples/t5_question_answering.py

Read it from top to bottom. What `python -m ftcore.train` does behind its options stands here in plain sight:
tokenizer, data set, batches, model, training step, validation step, training, and a function that answers a
question about a text of your own.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ftcore import load_model, load_tokenizer, save_model
from ftcore.data import DataLoader, prompt, read_records
from ftcore.decoding import generate
from ftcore.metrics import exact_match, f1
from ftcore.training.optim import adamw, learning_rate, set_learning_rate

# 1. Settings ------------------------------------------------------------------------------------------------
#
# For the real T5-small change one line, to MODEL = "google-t5/t5-small" (it needs `pip install ftcore[hub]`)
# or to the path of a directory that holds its files. Everything below stays as it is.

ROOT = Path(__file__).resolve().parent.parent
MODEL = str(ROOT / "weights" / "t5-mini")

TRAIN_FILE = ROOT / "examples" / "data" / "qa" / "train.json"
VALID_FILE = ROOT / "examples" / "data" / "qa" / "valid.json"
OUTPUT = Path("runs") / "t5_question_answering"

INPUT_LENGTH = 256  # tokens of question and context together; longer ones are cut
OUTPUT_LENGTH = 32  # tokens of an answer
TRAIN_BATCH_SIZE = 32
VALID_BATCH_SIZE = 64
EPOCHS = 3
LEARNING_RATE = 1e-2  # of the size of each weight matrix; the published T5 were fine-tuned with 1e-3
WARMUP_STEPS = 50
QUESTIONS_TO_ANSWER = 100  # of the validation set, after each epoch

CONTEXT = (
    "Marodan lives in Korbrook. Selorina lives in Wenhaven. "
    "Marodan is a baker and has a grey cat. Selorina plays the cello."
)
QUESTION = "Where does Selorina live?"


# 2. Data set ------------------------------------------------------------------------------------------------
#
# T5 reads one text and writes another. The text that it reads is "question: ... context: ...", the form in
# which Google's checkpoints saw such questions; `read_records` builds it. The tokenizer turns a text into ids
# and appends the special token </s>, which ends it. The model needs that token twice: in the source it says
# that there is no more to read, and in the target the model learns to write it, which is how it stops.


class QuestionAnswering(torch.utils.data.Dataset):
    """Questions with their contexts as source ids, answers as target ids."""

    decoder_only = False  # the loader asks: source and target are separate texts here, unlike GPT-2's

    def __init__(self, path: Path, tokenizer):
        self.records = read_records("qa", path, decoder_only=self.decoder_only)
        self.sources = [cut(tokenizer.encode(record.source), INPUT_LENGTH) for record in self.records]
        self.targets = [cut(tokenizer.encode(record.target), OUTPUT_LENGTH) for record in self.records]
        # The loader asks for these too, to put examples of similar length into one batch.
        self.lengths = np.array([[len(s), len(t)] for s, t in zip(self.sources, self.targets, strict=True)])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.sources[index], "labels": self.targets[index], "index": index}


def cut(ids: list[int], length: int) -> list[int]:
    """At most `length` ids. The last one, </s>, stays the last."""
    return ids if len(ids) <= length else ids[: length - 1] + ids[-1:]


# 3. Training step -------------------------------------------------------------------------------------------
#
# The decoder reads the answer shifted one place to the right, behind a start token: at each position it knows
# the words before and has to name the next one. All positions are computed at once.


def batch_loss(model, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of the target tokens."""
    decoder_input_ids = model.shift_right(batch["labels"])  # (B, T)
    logits = model(batch["input_ids"], batch["attention_mask"], decoder_input_ids)  # (B, T, V)
    # The loader pads labels with -100, which counts for nothing.
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100)


def training_step(model, optimizer, batch: dict[str, Tensor]) -> float:
    """Forward, backward, clip, step; returns the loss."""
    loss = batch_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


# 4. Validation step -----------------------------------------------------------------------------------------
#
# The same loss without dropout and without gradients. A mean over batches would count a token of a batch with
# few of them for more, so the sum of all losses is divided by the number of all target tokens.


def validation_step(model, batch: dict[str, Tensor]) -> tuple[float, int]:
    """The sum of the losses of a batch's target tokens, and how many these are."""
    tokens = int((batch["labels"] != -100).sum())
    with torch.inference_mode():
        return batch_loss(model, batch).item() * tokens, tokens


def validate(model, loader: DataLoader) -> float:
    model.eval()
    sums = [validation_step(model, batch) for batch in loader]
    model.train()
    return sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums)


# 5. Answering -----------------------------------------------------------------------------------------------
#
# The loss says how well the model predicts an answer that it is shown. What we want to know is what it writes
# by itself: greedily, token by token, until </s>.


def respond(model, tokenizer, source: str) -> str:
    """What the model writes when it has read a source."""
    input_ids = torch.tensor([cut(tokenizer.encode(source), INPUT_LENGTH)])  # (1, S)
    answer_ids = generate(model, input_ids, max_new_tokens=OUTPUT_LENGTH)  # (1, T)
    return tokenizer.decode(answer_ids[0])


def answer(model, tokenizer, context: str, question: str) -> str:
    """What the model answers to a question about a context."""
    return respond(model, tokenizer, prompt("qa", decoder_only=False, question=question, context=context))


def score(model, tokenizer, data: QuestionAnswering, show: int = 3) -> None:
    """Answer some of the validation questions and compare with the gold answers, as SQuAD does."""
    matches, overlaps = [], []
    for number, record in enumerate(data.records[:QUESTIONS_TO_ANSWER]):
        written = respond(model, tokenizer, record.source)
        matches.append(exact_match(written, record.references))
        overlaps.append(f1(written, record.references))
        if number < show:
            question, _ = record.source.split(" context: ")
            print(f"  {question}\n    answer: {written!r}   gold: {' | '.join(record.references)!r}")
    print(f"  exact match {np.mean(matches):.2f}, F1 {np.mean(overlaps):.2f} of {len(matches)} answers")


# 6. Training ------------------------------------------------------------------------------------------------


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
    train_loader = DataLoader(train_data, TRAIN_BATCH_SIZE, pad_id=tokenizer.pad_id, shuffle=True)
    valid_loader = DataLoader(valid_data, VALID_BATCH_SIZE, pad_id=tokenizer.pad_id)
    shapes = {name: tuple(tensor.shape) for name, tensor in next(iter(train_loader)).items()}
    print(f"data: {len(train_data)} questions to learn from, {len(valid_data)} to check with")
    print(f"  a batch: {shapes}")

    model = load_model(MODEL)
    print(f"model: {sum(parameter.numel() for parameter in model.parameters()):,} parameters")

    print(f"before training: loss {validate(model, valid_loader):.3f}")
    score(model, tokenizer, valid_data)

    optimizer = adamw(model, lr=LEARNING_RATE, weight_decay=0.0, relative=True)
    total_steps = EPOCHS * len(train_loader)
    step = 0
    model.train()
    for epoch in range(EPOCHS):
        train_loader.set_epoch(epoch)  # another order in each epoch
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

    # 7. Keeping it: a directory that ftcore, and Hugging Face's transformers, can open again.
    save_model(model, OUTPUT)
    tokenizer.save_pretrained(OUTPUT)
    print(f"saved in {OUTPUT}")

    # 8. A passage of your own.
    model, tokenizer = load_model(OUTPUT), load_tokenizer(OUTPUT)
    print(CONTEXT)
    print(f"  {QUESTION} {answer(model, tokenizer, CONTEXT, QUESTION)}")


if __name__ == "__main__":
    main()
