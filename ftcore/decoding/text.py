"""Generation from texts to texts: many at once in batches, or one whose answer is shown as it grows."""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ftcore.data.loader import pad_rows
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import Arguments, arguments_for, position_limit
from ftcore.decoding.search import generate
from ftcore.models import Model


def generate_texts(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int = 8,
    progress: bool = False,
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> list[Any]:
    """T5's answers to `texts`, or GPT-2's continuations without the prompts, in the order of `texts`.

    Texts of similar length share a batch. The longest come first: if memory runs out, it does so at once.

    Args:
        model, tokenizer: of one checkpoint.
        texts: T5's inputs or GPT-2's prompts.
        batch_size: how many texts are worked on at the same time.
        progress: show a bar that counts texts.
        generator, arguments: those of `generate`.

    Returns:
        A string for each text; with num_return_sequences > 1 a list of strings.

    Raises:
        ValueError: a wrong argument, or a prompt that is empty or too long, with its number, from 1.
    """
    sources = [tokenizer.encode(text) for text in texts]
    warn_of_final_spaces(model, texts)
    settings: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "generator": generator}
    return generate_from_ids(model, tokenizer, sources, **settings, **arguments)


def generate_from_ids(
    model: Model,
    tokenizer: Tokenizer,
    sources: Sequence[list[int]],
    *,
    batch_size: int = 8,
    progress: bool = False,
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> list[Any]:
    """`generate_texts` for texts that are token ids already: a dataset's sources, cut as in training."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    chosen = arguments_for(model, arguments)
    check_prompts(model, chosen, sources)
    answers: list[list[str]] = [[] for _ in sources]
    longest_first = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    with tqdm(total=len(sources), unit="text", disable=not progress) as bar:
        for start in range(0, len(sources), batch_size):
            batch = longest_first[start : start + batch_size]
            ids, mask = padded(model, tokenizer, [sources[index] for index in batch])
            rows = generate(model, ids, mask, generator=generator, **arguments).tolist()
            new_from = first_new_token(model, ids)
            for place, row in enumerate(rows):
                index = batch[place // chosen.num_return_sequences]
                answers[index].append(tokenizer.decode(up_to_end(row[new_from:], chosen.eos_ids)))
            bar.update(len(batch))
    return answers if chosen.num_return_sequences > 1 else [answer for [answer] in answers]


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    write: Callable[[str], object],
    *,
    generator: torch.Generator | None = None,
    **arguments: Any,
) -> str:
    """Answer or continue one text and hand the new text to `write` piece by piece, as soon as it is certain.

    Returns what `generate_texts` returns for this text: all pieces joined. Raises ValueError as that does,
    and for several answers or beams, which know their answer only at the end.
    """
    chosen = arguments_for(model, arguments)
    if chosen.num_return_sequences > 1:
        raise ValueError(
            f"num_return_sequences is {chosen.num_return_sequences}, but a stream shows only one"
        )
    source = tokenizer.encode(text)
    warn_of_final_spaces(model, [text])
    check_prompts(model, chosen, [source])
    ids, mask = padded(model, tokenizer, [source])
    stream = TextStream(tokenizer, write)
    generate(model, ids, mask, generator=generator, streamer=stream, **arguments)
    stream.close()
    return stream.written


class TextStream:
    """A `streamer` for `generate` with one row: turns its tokens into text and writes what no longer changes.

    A character may take several tokens, and the next token may remove a space before it, so that the end of
    the text is held back until it is certain, or until `close`.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object]) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.tokens: list[int] = []
        self.written = ""

    def __call__(self, tokens: Tensor) -> None:
        """Take the next token, shape (1,)."""
        self.tokens.append(int(tokens))
        # Parts of a character decode to U+FFFD. A space may yet go if no more than two characters follow it:
        # some tokenizers' decoding makes "don't" of "do n't", and "yes." of "yes .".
        self._write_up_to(re.sub(r"\s\S{0,2}$", "", self._text().rstrip("\ufffd")))

    def close(self) -> None:
        """Write what was held back."""
        self._write_up_to(self._text())

    def _text(self) -> str:
        return self.tokenizer.decode(self.tokens)

    def _write_up_to(self, text: str) -> None:
        piece = text[len(self.written) :]
        if piece:
            self.write(piece)
            self.written += piece


def check_prompts(model: Model, arguments: Arguments, sources: Sequence[list[int]]) -> None:
    """Refuse GPT-2 prompts that cannot be continued. T5 takes all."""
    if model.config.is_encoder_decoder:
        return
    for number, source in enumerate(sources, start=1):
        if not source:
            raise ValueError(f"prompt {number} is empty; GPT-2 can only continue a text")
        try:
            arguments.lengths(len(source), position_limit(model))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None


def warn_of_final_spaces(model: Model, texts: Sequence[str]) -> None:
    """A GPT-2 prompt that ends in a space is taken as it is, but its author should know."""
    ending = sum(text.endswith(" ") for text in texts)
    if ending and not model.config.is_encoder_decoder:
        warnings.warn(
            f"{ending} of {len(texts)} prompts end in a space, which GPT-2 continues poorly: its words begin"
            " with their space",
            stacklevel=3,
        )


def padded(model: Model, tokenizer: Tokenizer, sources: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, S), padded where the model wants it."""
    side = "right" if model.config.is_encoder_decoder else "left"
    return pad_rows(sources, tokenizer.pad_id, side), pad_rows([[1] * len(row) for row in sources], 0, side)


def first_new_token(model: Model, ids: Tensor) -> int:
    """Where the new tokens begin in what `generate` returns: after the start token or after the prompt."""
    return 1 if model.config.is_encoder_decoder else ids.shape[1]


def up_to_end(tokens: list[int], eos_ids: list[int]) -> list[int]:
    """The tokens up to the first EOS; what follows it is padding."""
    end = next((place for place, token in enumerate(tokens) if token in eos_ids), len(tokens))
    return tokens[: end + 1]
