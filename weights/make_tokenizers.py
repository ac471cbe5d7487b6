"""Train the two tokenizers: SentencePiece for weights/t5-mini, byte-level BPE for weights/gpt2-mini.

    python weights/make_tokenizers.py

They are trained on the text of their models: passages of examples/data/make_qa.py and the lines of
examples/data/emotion/train.txt.
"""

import io
import json
import re
import sys
from pathlib import Path
from random import Random

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import T5Tokenizer

WEIGHTS = Path(__file__).resolve().parent
DATA = WEIGHTS.parent / "examples" / "data"
sys.path.insert(0, str(DATA))

import make_qa  # noqa: E402  (not in a package)

PASSAGES = 8000
SEAM = "|"
T5_PIECES = 1100
SENTINELS = 100
ASCII = "".join(map(chr, range(33, 127)))
GPT2_TOKENS = 1500
END_OF_TEXT = "<|endoftext|>"


def seamed_passages() -> list[str]:
    """Passages and questions with a seam inside names, between digits and before punctuation.

    No piece crosses a seam. Otherwise many pieces would be names, which occur in one passage only.
    """
    rng = Random("tokenizer")
    lines = []
    for _ in range(PASSAGES):
        story = make_qa.story(rng, names=make_qa.Names(rng, "train", SEAM))
        (question,) = make_qa.ask(rng, story, 1)
        lines.append(f"question: {question.text} context: {story.context}")
    return [re.sub(r"(?<=\d)(?=\d)|(?<=\w)(?=[^\w\s|])", SEAM, line) for line in lines]


def train_sentencepiece() -> bytes:
    lines = seamed_passages()
    # Candidate pieces must occur in two different words, so every word is added once more with a comma.
    words = sorted({word for line in lines for word in re.findall(r"\w+", line)})
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines + [f"{word}," for word in words]),
        model_writer=model,
        model_type="unigram",
        vocab_size=T5_PIECES,
        pretokenization_delimiter=SEAM,
        normalization_rule_name="nmt_nfkc",
        required_chars=ASCII,  # English text must not contain <unk>
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def train_byte_level_bpe() -> Tokenizer:
    """Byte-level BPE as in GPT-2; <|endoftext|> gets the id after the last merge."""
    rng = Random("tokenizer")
    emotion = (DATA / "emotion" / "train.txt").read_text(encoding="utf-8").splitlines()
    prose = [make_qa.story(rng).context for _ in range(PASSAGES // 4)]
    lines = ["Emotion: " + line.rpartition(";")[0] for line in emotion] + prose
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=GPT2_TOKENS - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_t5(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "spiece.model").write_bytes(train_sentencepiece())
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "extra_ids": SENTINELS, "model_max_length": 512, **specials},
    )
    # transformers prefers tokenizer.json, and cannot read spiece.model without protobuf.
    T5Tokenizer.from_pretrained(directory).backend_tokenizer.save(
        str(directory / "tokenizer.json"), pretty=False
    )


def write_gpt2(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    tokenizer = json.loads(train_byte_level_bpe().to_str())["model"]
    vocabulary = tokenizer["vocab"] | {END_OF_TEXT: len(tokenizer["vocab"])}
    write_json(directory / "vocab.json", vocabulary)
    merges = [" ".join(merge) for merge in tokenizer["merges"]]
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    specials = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    write_json(
        directory / "tokenizer_config.json",
        {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 256, **specials},
    )


if __name__ == "__main__":
    write_t5(WEIGHTS / "t5-mini")
    write_gpt2(WEIGHTS / "gpt2-mini")
