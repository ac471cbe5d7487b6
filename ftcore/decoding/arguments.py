"""The arguments of generation: meanings, defaults, checks.

Names and meanings are those of Hugging Face's `GenerationConfig`. An argument that is not given comes from
`model.generation_config` (generation_config.json as a dict), then, for special tokens, from `model.config`,
then from the defaults below. An explicit `eos_token_id=None` means: never stop early.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ftcore.cli import did_you_mean

DEFAULT_NEW_TOKENS = 20
SPECIAL_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p")
LOWER_BOUNDS = {
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

    # Length. "New" tokens are the generated ones; the others count GPT-2's prompt or T5's start token too.
    max_new_tokens: int | None = None  # overrides max_length; 20 if neither is given
    max_length: int | None = None
    min_new_tokens: int | None = None  # no EOS before; overrides min_length
    min_length: int = 0

    # Beam search.
    num_beams: int = 1  # 1: greedy search or sampling
    # A hypothesis scores its log-probability / (new tokens ** length_penalty): above 0 favors long ones.
    length_penalty: float = 1.0
    # True: stop at num_beams complete hypotheses. False: stop when no running beam can beat them at its
    # present length. "never": when none can even at the maximum length.
    early_stopping: bool | str = False
    num_return_sequences: int = 1  # the best of num_beams, or samples per prompt

    # Constraints.
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice; 0: off
    repetition_penalty: float = 1.0  # above 1: tokens that occurred become less likely
    bad_words_ids: list[list[int]] | None = None  # token sequences that never appear
    forced_bos_token_id: int | None = None  # the token after a prompt of one token (T5: the start token)
    forced_eos_token_id: int | list[int] | None = None  # the last token at the maximum length

    # Sampling.
    do_sample: bool = False  # sample instead of taking the most likely token
    temperature: float = 1.0  # below 1: sharper distribution; above 1: flatter
    top_k: int | None = 50  # sample from the k most likely tokens; 0 or None: from all
    top_p: float = 1.0  # sample from the most likely tokens that together reach this probability
    min_p: float | None = None  # sample from tokens with at least this share of the highest probability
    typical_p: float = 1.0  # sample from the most typical tokens that together reach this probability

    # Special tokens, by default the model's.
    eos_token_id: int | list[int] | None = None  # any of these ends a row
    pad_token_id: int | None = None  # fills rows that have ended; default: the first EOS
    bos_token_id: int | None = None  # used if there is no decoder_start_token_id
    decoder_start_token_id: int | None = None  # first decoder input of T5

    @property
    def eos_ids(self) -> list[int]:
        return as_list(self.eos_token_id)

    @property
    def forced_eos_ids(self) -> list[int]:
        return as_list(self.forced_eos_token_id)

    @property
    def pad_id(self) -> int:
        """The id that fills rows that have ended (without EOS none does, and it is unused)."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or [0])[0]

    @property
    def start_id(self) -> int:
        """The first decoder input."""
        start = self.bos_token_id if self.decoder_start_token_id is None else self.decoder_start_token_id
        if start is None:
            raise ValueError(
                "decoder_start_token_id is missing from config.json and generation_config.json: pass it"
                " (for T5 the id of <pad>, 0)"
            )
        return start

    def lengths(self, prompt_length: int, position_limit: int | None) -> tuple[int, int]:
        """Minimum and maximum length of a row, with its prompt: GPT-2's with padding, or T5's decoder prefix.

        Raises:
            ValueError: the prompt reaches the maximum, the maximum exceeds the model's positions, or the
                minimum exceeds the maximum.
        """
        if self.max_new_tokens is not None:
            maximum = prompt_length + self.max_new_tokens
        elif self.max_length is not None:
            maximum = self.max_length
        else:
            maximum = prompt_length + DEFAULT_NEW_TOKENS
            maximum = min(maximum, position_limit or maximum)
        # The last token is never fed back, so it needs no position.
        if position_limit is not None and max(prompt_length, maximum - 1) > position_limit:
            new = max(0, maximum - prompt_length)
            raise ValueError(
                f"a prompt of {prompt_length} tokens and {new} new ones exceed the model's {position_limit}"
                " positions (n_positions): cut the prompt or lower max_new_tokens"
            )
        if prompt_length >= maximum:
            raise ValueError(
                f"a prompt of {prompt_length} tokens reaches the maximum length of {maximum}:"
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
    """The arguments of one call: those given, then the model's own defaults, then ours.

    Raises:
        ValueError: an unknown argument, a value out of range, or a contradiction.
    """
    known = [field.name for field in fields(Arguments)]
    chosen: dict[str, Any] = {name: getattr(model.config, name, None) for name in SPECIAL_TOKENS}
    for name, value in (model.generation_config or {}).items():
        if name in known and value is not None:
            chosen[name] = value
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"generate has no argument {name!r}{did_you_mean(name, known)}")
        # None disables a special token or top-k; elsewhere it means "not given".
        if value is not None or name in (*SPECIAL_TOKENS, "top_k"):
            chosen[name] = value
    arguments = Arguments(**chosen)
    check(arguments, model.config.vocab_size)
    unused = [name for name in SAMPLING_ONLY if given.get(name) is not None]
    if unused and not arguments.do_sample:
        warnings.warn(f"without do_sample=True generate ignores {', '.join(unused)}", stacklevel=3)
    return arguments


def check(arguments: Arguments, vocab_size: int) -> None:
    """Raises ValueError, naming the argument, for a value out of range or a contradiction."""
    for name, bound in LOWER_BOUNDS.items():
        value = getattr(arguments, name)
        if value is not None and (not isinstance(value, int) or value < bound):
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least {bound}")
    stopping = arguments.early_stopping
    for name, is_valid, expected in (
        ("temperature", arguments.temperature > 0, "more than 0 (greedy: no do_sample)"),
        ("repetition_penalty", arguments.repetition_penalty > 0, "more than 0"),
        ("top_p", 0 <= arguments.top_p <= 1, "0 to 1"),
        ("min_p", arguments.min_p is None or 0 <= arguments.min_p <= 1, "0 to 1"),
        ("typical_p", 0 < arguments.typical_p <= 1, "more than 0, up to 1"),
        ("early_stopping", isinstance(stopping, bool) or stopping == "never", 'True, False or "never"'),
    ):
        if not is_valid:
            raise ValueError(f"{name} is {getattr(arguments, name)!r}, expected {expected}")

    sequences = arguments.num_return_sequences
    if sequences > 1 and arguments.num_beams == 1 and not arguments.do_sample:
        raise ValueError(
            f"num_return_sequences={sequences} needs num_beams of at least {sequences} or do_sample=True:"
            " greedy search has one answer"
        )
    if 1 < arguments.num_beams < sequences:
        raise ValueError(f"num_return_sequences is {sequences}, more than num_beams, {arguments.num_beams}")

    if not all(arguments.bad_words_ids or [True]):
        raise ValueError("bad_words_ids holds an empty word, expected lists of at least one token id")
    for name, tokens in (
        ("forced_bos_token_id", as_list(arguments.forced_bos_token_id)),
        ("forced_eos_token_id", arguments.forced_eos_ids),
        ("bad_words_ids", [token for word in arguments.bad_words_ids or [] for token in word]),
    ):
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} holds {token}, but token ids go from 0 to {vocab_size - 1}")
    # These may exceed the vocabulary: such an EOS never occurs, and pad tokens are not fed to the model.
    for name, tokens in (
        ("eos_token_id", arguments.eos_ids),
        ("pad_token_id", as_list(arguments.pad_token_id)),
    ):
        if any(token < 0 for token in tokens):
            raise ValueError(f"{name} is {getattr(arguments, name)!r}, expected no negative id")


def position_limit(model: Any) -> int | None:
    """GPT-2's number of positions; None for T5, whose positions are relative."""
    return getattr(model.config, "n_positions", None)


def as_list(tokens: int | list[int] | None) -> list[int]:
    """One token id, several or none as a list."""
    if tokens is None:
        return []
    return [tokens] if isinstance(tokens, int) else list(tokens)
