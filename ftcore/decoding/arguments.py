"""What every argument of generation means, where its default comes from, and which combinations make sense.

Names and meanings are Hugging Face's (`GenerationConfig`). An argument that the caller leaves out is taken
from `model.generation_config` (the checkpoint's generation_config.json as a plain dict), then, for special
tokens, from `model.config`, then from the default below. `eos_token_id=None` given by the caller means:
never stop early.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

DEFAULT_NEW_TOKENS = 20
SPECIAL_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p")
LEAST = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "top_k": 0,
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """All arguments of one call of `generate`. Lengths are in tokens."""

    # How long. "New" tokens are those generated; the others count GPT-2's prompt or T5's start token as well.
    max_new_tokens: int | None = None  # wins over max_length; 20 where neither is given
    max_length: int | None = None
    min_new_tokens: int | None = None  # no EOS before that many; wins over min_length
    min_length: int = 0

    # Beam search.
    num_beams: int = 1  # 1: no beams, but greedy search or sampling
    # A hypothesis scores its log-probability / (new tokens ** length_penalty): above 0 favours long ones.
    length_penalty: float = 1.0
    # True: stop once num_beams hypotheses are complete. False: once the running ones, judged at their
    # present length, cannot beat them. "never": once they could not even at the maximum length.
    early_stopping: bool | str = False
    num_return_sequences: int = 1  # the best of num_beams, or that many samples of each prompt

    # What may be said.
    no_repeat_ngram_size: int = 0  # no run of that many tokens occurs twice; 0: no such rule
    repetition_penalty: float = 1.0  # above 1: tokens that already occurred become less likely
    bad_words_ids: list[list[int]] | None = None  # sequences of tokens that never appear
    forced_bos_token_id: int | None = (
        None  # the token right after a prompt of one token (T5: the start token)
    )
    forced_eos_token_id: int | list[int] | None = None  # the last token where the maximum length is reached

    # Sampling.
    do_sample: bool = False  # draw each token instead of taking the best
    temperature: float = 1.0  # below 1: closer to the best; above 1: more varied
    top_k: int | None = 50  # draw among the k likeliest; 0 or None: among all
    top_p: float = 1.0  # draw among the likeliest that together reach this probability
    min_p: float | None = None  # draw among those at least this many times as likely as the likeliest
    typical_p: float = 1.0  # draw among the most typical that together reach this probability

    # Special tokens, the model's own where not given.
    eos_token_id: int | list[int] | None = None  # any of these ends a row
    pad_token_id: int | None = None  # fills a row that ended; where there is none, the first EOS does
    bos_token_id: int | None = None  # stands in for a missing decoder_start_token_id
    decoder_start_token_id: int | None = None  # what T5's decoder starts from

    @property
    def eos_ids(self) -> list[int]:
        return as_list(self.eos_token_id)

    @property
    def forced_eos_ids(self) -> list[int]:
        return as_list(self.forced_eos_token_id)

    @property
    def pad_id(self) -> int:
        """What fills rows that ended. Without any EOS none ends early, and it is never used."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or [0])[0]

    @property
    def start_id(self) -> int:
        """What a decoder starts from."""
        start = self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id
        if start is None:
            raise ValueError(
                "decoder_start_token_id is missing from config.json and generation_config.json: pass it"
                " (for T5 the id of <pad>, 0)"
            )
        return start

    def lengths(self, prompt_length: int, position_limit: int | None) -> tuple[int, int]:
        """The minimum and the maximum length of a row, prompt included.

        Args:
            prompt_length: of GPT-2's prompt with its padding, or of what T5's decoder starts from.
            position_limit: how many positions the model has, None for no limit.

        Raises:
            ValueError: the prompt leaves no room, the model cannot hold the longest row, or the minimum
                exceeds the maximum.
        """
        if self.max_new_tokens is not None:
            maximum = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            maximum = self.max_length
        else:
            maximum = prompt_length + DEFAULT_NEW_TOKENS
            if position_limit is not None:
                maximum = min(maximum, position_limit)
        # The last token is never fed back, so it needs no position.
        if position_limit is not None and max(prompt_length, maximum - 1) > position_limit:
            new = max(0, maximum - prompt_length)
            raise ValueError(
                f"a prompt of {prompt_length} tokens and {new} new ones exceed the model's {position_limit}"
                " positions (n_positions): cut the prompt or lower max_new_tokens"
            )
        if prompt_length >= maximum:
            raise ValueError(
                f"a prompt of {prompt_length} tokens leaves no room below the maximum length of {maximum}:"
                " cut the prompt, raise max_length, or pass max_new_tokens instead"
            )
        minimum = self.min_length if self.min_new_tokens is None else prompt_length + self.min_new_tokens
        if minimum > maximum:
            raise ValueError(
                f"the minimum length of {minimum} tokens exceeds the maximum of {maximum} (both count the"
                f" {prompt_length} of the prompt): lower min_new_tokens or min_length, or raise the maximum"
            )
        return minimum, maximum


def arguments_for(model: Any, given: Mapping[str, Any]) -> Arguments:
    """The arguments of one call: what the caller gave, then the model's own defaults, then ours; checked."""
    known = {field.name for field in fields(Arguments)}
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"generate has no argument {name!r}{hint}")
    chosen: dict[str, Any] = {name: getattr(model.config, name, None) for name in SPECIAL_TOKENS}
    for name, value in (model.generation_config or {}).items():
        if name in known and value is not None:
            chosen[name] = value
    for name, value in given.items():
        # None switches a special token or top-k off; elsewhere it means "not given".
        if value is not None or name in (*SPECIAL_TOKENS, "top_k"):
            chosen[name] = value
    arguments = Arguments(**chosen)
    check(arguments, model.config.vocab_size)
    if not arguments.do_sample and (idle := [name for name in SAMPLING_ONLY if given.get(name) is not None]):
        warnings.warn(f"without do_sample=True generate ignores {', '.join(idle)}", stacklevel=3)
    return arguments


def check(arguments: Arguments, vocab_size: int) -> None:
    """ValueError, naming the argument, for a value out of range or a combination without a meaning."""
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
    if not arguments.temperature > 0:
        raise ValueError(
            f"temperature is {arguments.temperature!r}, expected more than 0 (greedy: no do_sample)"
        )
    if not arguments.repetition_penalty > 0:
        raise ValueError(f"repetition_penalty is {arguments.repetition_penalty!r}, expected more than 0")
    if not 0 <= arguments.top_p <= 1:
        raise ValueError(f"top_p is {arguments.top_p!r}, expected 0 to 1")
    if arguments.min_p is not None and not 0 <= arguments.min_p <= 1:
        raise ValueError(f"min_p is {arguments.min_p!r}, expected 0 to 1")
    if not 0 < arguments.typical_p <= 1:
        raise ValueError(f"typical_p is {arguments.typical_p!r}, expected more than 0, up to 1")
    if not isinstance(arguments.early_stopping, bool) and arguments.early_stopping != "never":
        raise ValueError(f'early_stopping is {arguments.early_stopping!r}, expected True, False or "never"')

    several = arguments.num_return_sequences
    if several > 1 and arguments.num_beams == 1 and not arguments.do_sample:
        raise ValueError(
            f"num_return_sequences={several} needs num_beams of at least {several} or do_sample=True:"
            " greedy search has one answer"
        )
    if 1 < arguments.num_beams < several:
        raise ValueError(f"num_return_sequences is {several}, more than num_beams, {arguments.num_beams}")

    if not all(arguments.bad_words_ids or [True]):
        raise ValueError("bad_words_ids holds an empty word, expected lists of at least one token id")
    said = {
        "forced_bos_token_id": as_list(arguments.forced_bos_token_id),
        "forced_eos_token_id": arguments.forced_eos_ids,
        "bad_words_ids": [token for word in arguments.bad_words_ids or [] for token in word],
    }
    for name, tokens in said.items():
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} holds {token}, but token ids go from 0 to {vocab_size - 1}")
    # These two may lie beyond the vocabulary: that EOS never comes, and the model is never fed the pad.
    for name, tokens in (
        ("eos_token_id", arguments.eos_ids),
        ("pad_token_id", as_list(arguments.pad_token_id)),
    ):
        if any(token < 0 for token in tokens):
            raise ValueError(f"{name} is {getattr(arguments, name)!r}, expected no negative id")


def position_limit(model: Any) -> int | None:
    """How many positions the model has: GPT-2 learnt a vector for each, T5's are relative and have no end."""
    return getattr(model.config, "n_positions", None)


def as_list(tokens: int | list[int] | None) -> list[int]:
    """Token ids as a list, however many there are."""
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
