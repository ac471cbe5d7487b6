"""Where a row ends before the maximum length: an end token, a stop string, or a function of the caller."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from reprlib import repr as shown
from typing import Any

import torch
from torch import Tensor

from ftcore.data.tokenizer import Tokenizer
from ftcore.decoding.arguments import Arguments
from ftcore.decoding.inputs import wrong_result

StoppingCriterion = Callable[[Tensor, None], Any]  # (ids (R, T), None) -> (R,) bool, or one bool for all rows


class EndOfRow:
    """Whether rows end with their last token.

    Args:
        arguments: eos_token_id, stop_strings and stopping_criteria are used.
        tokenizer: of the stop strings. Without it, those of a checkpoint's files are ignored with a warning.

    Raises:
        ValueError: `stop_strings` was given, but no tokenizer.
    """

    def __init__(self, arguments: Arguments, tokenizer: Tokenizer | None, device: torch.device) -> None:
        self.eos_ids = torch.tensor(arguments.eos_ids, dtype=torch.long, device=device)
        self.criteria: list[StoppingCriterion] = [*(arguments.stopping_criteria or [])]
        if tokenizer is not None and arguments.stops:
            self.criteria.append(StopStrings(tokenizer, arguments.stops))
        elif arguments.stops:
            error = arguments.error(
                f"stop_strings={shown(arguments.stops)} needs tokenizer=..., the model's own"
            )
            if not arguments.origin.get("stop_strings"):
                raise error
            warnings.warn(f"{error}: it is ignored", stacklevel=3)

    def __call__(self, ids: Tensor) -> Tensor:
        """`ids` (R, T), prompt included -> (R,) bool."""
        ended = torch.isin(ids[:, -1], self.eos_ids)
        for criterion in self.criteria:
            result = criterion(ids, None)  # transformers passes scores, but by default None too
            if isinstance(result, bool):
                result = torch.full_like(ended, result)
            if not (
                isinstance(result, Tensor) and result.shape == ended.shape and result.dtype == torch.bool
            ):
                expected = f"True, False or a bool tensor of the shape {tuple(ended.shape)}"
                raise wrong_result("stopping_criteria", criterion, result, expected)
            ended = ended | result.to(ended.device)
        return ended


class StopStrings:
    """A stopping criterion: the last token completes one of the strings.

    The string may begin inside of an earlier token, in the prompt too, and end inside of the last one. It is
    searched for in the bytes of the last tokens, special tokens included; so the tokens of a row are copied
    to the host in every step.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        if not isinstance(tokenizer, Tokenizer):
            raise ValueError(
                f"tokenizer is a {type(tokenizer).__name__}, expected one of ftcore.load_tokenizer"
            )
        self.strings = [string.encode(errors="surrogatepass") for string in strings]
        self.most_tokens = max(map(len, self.strings))
        self.bytes_of = cache(tokenizer.token_bytes)

    def __call__(self, ids: Tensor, scores: None = None) -> Tensor:
        """`ids` (R, T) -> (R,) bool."""
        rows = ids[:, -self.most_tokens :].tolist()
        return torch.tensor([self.are_completed(row) for row in rows], device=ids.device)

    def are_completed(self, tokens: list[int]) -> bool:
        """Whether a string ends within the bytes of the last token."""
        *earlier, last = map(self.bytes_of, tokens)
        before = b"".join(earlier)
        text = before + last
        return any(text.find(string, max(0, len(before) + 1 - len(string))) >= 0 for string in self.strings)
