"""Text in, text out: many texts in batches, or one whose answer is streamed."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ftcore.data.loader import pad_rows
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import Arguments, arguments_for, position_limit
from ftcore.decoding.search import generate
from ftcore.models import Model
from ftcore.models.config import convert
from ftcore.output import progress_bar


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

    Texts of similar length share a batch, the longest first, so that running out of memory happens at once.
    `batch_size` is in texts; `generator` and `arguments` are those of `generate`.

    Returns:
        One string per text; with num_return_sequences > 1 one list of strings per text.

    Raises:
        ValueError: a wrong argument, or an empty or too long prompt, with its number from 1.
    """
    sources = [tokenizer.encode(text) for text in texts]
    warn_of_final_spaces(model, texts)
    return generate_from_ids(
        model, tokenizer, sources, batch_size=batch_size, progress=progress, generator=generator, **arguments
    )


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
    """`generate_texts` for encoded texts, such as the sources of a dataset."""
    batch_size = convert("batch_size", batch_size, int)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    chosen = arguments_for(model, arguments)
    check_prompts(model, chosen, sources)
    answers: list[list[str]] = [[] for _ in sources]
    longest_first = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    with progress_bar(total=len(sources), unit="text", disable=not progress) as bar:
        for start in range(0, len(sources), batch_size):
            batch = longest_first[start : start + batch_size]
            ids, mask = padded(model, tokenizer, [sources[index] for index in batch])
            rows = generate(model, ids, mask, generator=generator, **arguments).tolist()
            prefix = 1 if model.config.is_encoder_decoder else ids.shape[1]  # start token or prompt
            for number, row in enumerate(rows):
                index = batch[number // chosen.num_return_sequences]
                answers[index].append(tokenizer.decode(up_to_end(row[prefix:], chosen.eos_ids)))
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
    """Answer or continue one text, and pass the new text to `write` in pieces, as soon as they are final.

    Returns all pieces joined, the text that `generate_texts` returns. Raises ValueError as it does, and for
    several answers or beams, which are known only at the end.
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
    """A `streamer` for `generate` with one row: decodes its tokens and writes the text that is final.

    A character may take several tokens, and some tokenizers remove a space once they see what follows it. So
    the end of the text is held back until it is final, or until `close`.
    """

    def __init__(self, tokenizer: Tokenizer, write: Callable[[str], object]) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.tokens: list[int] = []
        self.written = ""

    def __call__(self, tokens: Tensor) -> None:
        """Add the next token, shape (1,)."""
        self.tokens.append(int(tokens))
        self._write_up_to(self.tokenizer.decode_final(self.tokens))

    def close(self) -> None:
        """Write the text that was held back."""
        self._write_up_to(self.tokenizer.decode(self.tokens))

    def _write_up_to(self, text: str) -> None:
        if piece := text[len(self.written) :]:
            self.write(piece)
            self.written += piece


def check_prompts(model: Model, arguments: Arguments, sources: Sequence[list[int]]) -> None:
    """Raises ValueError for an empty or too long GPT-2 prompt, or lengths that contradict each other."""
    if model.config.is_encoder_decoder:  # any source; answers begin with the start token
        arguments.lengths(1, position_limit(model))
        return
    for number, source in enumerate(sources, start=1):
        if not source:
            raise ValueError(f"prompt {number} is empty; GPT-2 can only continue a text")
        try:
            arguments.lengths(len(source), position_limit(model))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None


def warn_of_final_spaces(model: Model, texts: Sequence[str]) -> None:
    """Warn of GPT-2 prompts that end in a space; they are not changed."""
    ending = sum(text.endswith(" ") for text in texts)
    if ending and not model.config.is_encoder_decoder:
        warnings.warn(
            f"{ending} of {len(texts)} prompts end in a space, which GPT-2 continues poorly: its words begin"
            " with their space",
            stacklevel=3,
        )


def padded(model: Model, tokenizer: Tokenizer, sources: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, S), padded on the side that the model needs."""
    side = "right" if model.config.is_encoder_decoder else "left"
    return pad_rows(sources, tokenizer.pad_id, side), pad_rows([[1] * len(row) for row in sources], 0, side)


def up_to_end(tokens: list[int], eos_ids: list[int]) -> list[int]:
    """The tokens up to the first EOS, which only padding follows."""
    end = next((index for index, token in enumerate(tokens) if token in eos_ids), len(tokens))
    return tokens[: end + 1]
