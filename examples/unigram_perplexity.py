"""Perplexity of a unigram model, the baseline for a language model.

    python examples/unigram_perplexity.py --model DIR --task emotion --train train.txt --data test.txt

The probability of a token is its relative frequency in the training file with add-one smoothing, so that
tokens without a training example have a small probability instead of 0. The perplexity is comparable with
that of `python -m ftcore.evaluate` for the same file: both are over the same target tokens, including the end
of each text.
"""

import argparse
import math
from collections import Counter

from ftcore import load_tokenizer
from ftcore.data import Dataset, read_corpus, read_records


def targets(tokenizer, task: str, file: str, max_length: int) -> list[int]:
    """The tokens of a file that a causal model predicts: all but the first of each text."""
    if task == "lm":
        corpus = read_corpus(task, file, tokenizer, decoder_only=True)
        return corpus.read(1, len(corpus))
    records = read_records(task, file, decoder_only=True)
    limits = {"max_source_length": max_length, "max_target_length": max_length}
    dataset = Dataset(records, tokenizer, decoder_only=True, **limits)
    return [token for example in dataset for token in example["labels"][1:]]


def unigram_perplexity(train: list[int], test: list[int], vocab_size: int) -> float:
    counts = Counter(train)
    nats = sum(math.log((len(train) + vocab_size) / (counts[token] + 1)) for token in test)
    return math.exp(nats / len(test))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="directory of the tokenizer")
    parser.add_argument("--task", default="emotion", choices=["emotion", "lm"])
    parser.add_argument("--train", required=True, help="file whose tokens are counted")
    parser.add_argument("--data", required=True, help="file to score")
    parser.add_argument("--max-length", type=int, default=128, help="maximal tokens of a text")
    options = parser.parse_args()

    tokenizer = load_tokenizer(options.model)
    train, test = (
        targets(tokenizer, options.task, file, options.max_length) for file in (options.train, options.data)
    )
    perplexity = unigram_perplexity(train, test, tokenizer.vocab_size)
    print(f"unigram perplexity {perplexity:.1f} over {len(test):,} tokens")


if __name__ == "__main__":
    main()
