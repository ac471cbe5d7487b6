"""Text in, text out: many texts in batches, or one whose answer is streamed."""

import warnings
from collections.abc import Callable, Sequence
from reprlib import repr as shown
from typing import Any, NamedTuple

from torch import Tensor

from ftcore.data.loader import pad_rows
from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import Arguments, arguments_for, position_limit
from ftcore.decoding.inputs import bos_id
from ftcore.decoding.sampling import Generators, check_generators
from ftcore.decoding.search import generate
from ftcore.models import Model
from ftcore.models.config import convert
from ftcore.output import progress_bar


class ScoredText(NamedTuple):
    """A generated text, with the scores of `ftcore.decoding.generate`."""

    text: str
    score: float  # of the sequence
    tokens: list[int]  # the new tokens, EOS included
    token_scores: list[float]  # their log-probabilities


def generate_texts(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[str] | Sequence[list[int]],
    *,
    batch_size: int = 8,
    progress: bool = False,
    skip_special_tokens: bool = True,
    return_scores: bool = False,
    generator: Generators | None = None,
    **arguments: Any,
) -> list[Any]:
    """T5's answers to `texts`, or GPT-2's continuations without the prompts, in the order of `texts`.

    Texts of similar length share a batch, the longest first, so that running out of memory happens at once.
    GPT-2 continues an empty text from BOS.

    Args:
        texts: strings, or their token ids, such as the sources of a dataset.
        batch_size: in texts.
        skip_special_tokens: leave out sentinels and other special tokens; end token and padding always are.
        return_scores: return a `ScoredText` in place of each string.
        generator: as in `generate`; a list has one per text.
        arguments: those of `generate`. The answers end before the first of `stop_strings`.

    Returns:
        One string per text; with num_return_sequences > 1 one list of strings per text.

    Raises:
        ValueError: a batch size below 1, another wrong argument, or a prompt that is too long, or empty
            without BOS, with its number from 1.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts is {shown(texts)}, expected a list of texts")
    batch_size = convert("batch_size", batch_size, int)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    sources: Sequence[list[int]] = [
        tokenizer.encode(text) if isinstance(text, str) else text for text in texts
    ]
    warn_of_final_spaces(model, [text for text in texts if isinstance(text, str)])
    check_generators(generator, len(sources))
    chosen = arguments_for(model, arguments)
    sources = checked_prompts(model, chosen, sources)
    answers: list[list[Any]] = [[] for _ in sources]
    longest_first = sorted(range(len(sources)), key=lambda index: -len(sources[index]))
    with progress_bar(total=len(sources), unit="text", disable=not progress) as bar:
        for start in range(0, len(sources), batch_size):
            batch = longest_first[start : start + batch_size]
            ids, mask = padded(model, tokenizer, [sources[index] for index in batch])
            own = [generator[index] for index in batch] if isinstance(generator, Sequence) else generator
            result = generate(
                model, ids, mask, tokenizer=tokenizer, generator=own, return_scores=return_scores, **arguments
            )
            prefix = 1 if model.config.is_encoder_decoder else ids.shape[1]  # start token or prompt
            rows = zip(*(values.tolist() for values in (result if return_scores else [result])), strict=True)
            for number, (row, *scores) in enumerate(rows):
                tokens = up_to_end(row[prefix:], chosen.eos_ids)
                text = tokenizer.decode(without_end(tokenizer, tokens), skip_special_tokens)
                text = before_stop(text, chosen.stops)
                answer: Any = text
                if return_scores:
                    token_scores, score = scores
                    while tokens and tokens[-1] == chosen.pad_id and token_scores[len(tokens) - 1] == 0.0:
                        tokens.pop()  # padding after a stop string
                    answer = ScoredText(text, score, tokens, token_scores[: len(tokens)])
                answers[batch[number // chosen.num_return_sequences]].append(answer)
            bar.update(len(batch))
    return answers if chosen.num_return_sequences > 1 else [answer for [answer] in answers]


generate_from_ids = generate_texts  # its name for token ids


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    text: str,
    write: Callable[[str], object],
    *,
    skip_special_tokens: bool = True,
    generator: Generators | None = None,
    **arguments: Any,
) -> str:
    """Answer or continue one text, and pass the new text to `write` in pieces, as soon as they are final.

    Returns all pieces joined: what `generate_texts` returns, whose skip_special_tokens, generator and other
    arguments it takes. Raises ValueError as it does, and for
    several answers or beams, which are known only at the end.
    """
    chosen = arguments_for(model, arguments)
    if chosen.num_return_sequences > 1:
        raise ValueError(
            f"num_return_sequences is {chosen.num_return_sequences}, but a stream shows only one"
        )
    warn_of_final_spaces(model, [text])
    ids, mask = padded(model, tokenizer, checked_prompts(model, chosen, [tokenizer.encode(text)]))
    stream = TextStream(tokenizer, write, skip_special_tokens=skip_special_tokens, stop_strings=chosen.stops)
    generate(model, ids, mask, tokenizer=tokenizer, generator=generator, streamer=stream, **arguments)
    stream.close()
    return stream.written


class TextStream:
    """A `streamer` for `generate` with one row: decodes its tokens and passes text that is final to `write`.

    A character may take several tokens, some tokenizers remove a space once they see what follows it, and the
    last characters may begin one of the `stop_strings`. So the end of the text is held back until it is
    final, or until `close`. `skip_special_tokens` is as in `generate_texts`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        write: Callable[[str], object],
        *,
        skip_special_tokens: bool = True,
        stop_strings: Sequence[str] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.write = write
        self.skip_special_tokens = skip_special_tokens
        self.stop_strings = stop_strings
        self.held_back = max(map(len, stop_strings), default=1) - 1
        self.tokens: list[int] = []
        self.written = ""

    def __call__(self, tokens: Tensor) -> None:
        """Add the next token, shape (1,)."""
        self.tokens.append(int(tokens))
        final = self.tokenizer.decode_final(self._without_end(), self.skip_special_tokens)
        length = max(0, len(final) - self.held_back)
        self._write_up_to(before_stop(final, self.stop_strings)[:length])

    def close(self) -> None:
        """Write the text that was held back."""
        text = self.tokenizer.decode(self._without_end(), self.skip_special_tokens)
        self._write_up_to(before_stop(text, self.stop_strings))

    def _without_end(self) -> list[int]:
        return without_end(self.tokenizer, self.tokens)

    def _write_up_to(self, text: str) -> None:
        if piece := text[len(self.written) :]:
            self.write(piece)
            self.written += piece


def checked_prompts(model: Model, arguments: Arguments, sources: Sequence[list[int]]) -> Sequence[list[int]]:
    """The sources, with BOS in place of empty prompts of GPT-2.

    Raises:
        ValueError: lengths that contradict each other, or a GPT-2 prompt that is too long, or empty without
            BOS.
    """
    if model.config.is_encoder_decoder:  # any source; answers begin with the start token
        arguments.lengths(1, position_limit(model))
        return sources
    prompts = []
    for number, source in enumerate(sources, start=1):
        try:
            prompts.append(source or [bos_id(model, arguments)])
            arguments.lengths(len(prompts[-1]), position_limit(model))
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
    return prompts


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


def without_end(tokenizer: Tokenizer, tokens: list[int]) -> list[int]:
    """The tokens without end tokens and padding after the last one."""
    length = len(tokens)
    while length and tokens[length - 1] in (tokenizer.eos_id, tokenizer.pad_id):
        length -= 1
    return tokens[:length]


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[: min((text.find(string) for string in stop_strings if string in text), default=len(text))]
