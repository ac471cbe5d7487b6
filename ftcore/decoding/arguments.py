"""The arguments of generation: meanings, defaults, checks.

Names and meanings are those of Hugging Face's `GenerationConfig`. An argument that is not given comes from
`model.generation_config` (generation_config.json as a dict) or, where the checkpoint has none, from the other
keys of config.json; then, for special tokens, from `model.config`; then from the defaults below. An explicit
`eos_token_id=None` means: never stop early.
"""

import math
import re
import warnings
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from reprlib import repr as shown
from typing import Any, Literal, get_type_hints

from ftcore.models.config import convert
from ftcore.output import did_you_mean

words = re.compile(r"\w+").findall

DEFAULT_NEW_TOKENS = 20
SPECIAL_TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")
SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p", "typical_p")
PROCESSOR_ARGUMENTS = words(
    """min_new_tokens min_length no_repeat_ngram_size encoder_no_repeat_ngram_size repetition_penalty
    bad_words_ids suppress_tokens begin_suppress_tokens exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id temperature top_k top_p min_p typical_p prefix_allowed_tokens_fn logits_processor
    diversity_penalty"""
)
WITHIN_VOCABULARY = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")
# Ids that may exceed the vocabulary: such a token never occurs, and pad tokens are not fed to the model.
ANY_IDS = ("eos_token_id", "pad_token_id", "suppress_tokens", "begin_suppress_tokens")

# Limits of what one source allocates.
MAX_SCORES = 2**26  # beams or sequences, times vocabulary
MAX_IDS = 2**25  # beams or sequences, times length
MAX_CATEGORIES = 2**24  # of torch.multinomial

# Lowest and highest value. Logits divided by less than 1e-30 may exceed float32.
BOUNDS: dict[str, tuple[float, float]] = (
    dict.fromkeys(("max_new_tokens", "max_length", "num_beams", "num_return_sequences"), (1, math.inf))
    | {"num_beam_groups": (1, math.inf), "diversity_penalty": (0, 1e9)}
    | dict.fromkeys(("min_new_tokens", "min_length", "top_k"), (0, math.inf))
    | dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0, math.inf))
    | dict.fromkeys(("temperature", "repetition_penalty"), (1e-30, math.inf))
    | {"top_p": (0, 1), "min_p": (0, 1), "typical_p": (1e-30, 1)}
)

# Settings of transformers that change its output and are not implemented here, with the value that does not.
NOT_IMPLEMENTED: dict[str, Any] = {
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "token_healing": False,
} | dict.fromkeys(
    words(
        """constraints custom_generate dola_layers force_words_ids max_time negative_prompt_attention_mask
        negative_prompt_ids sequence_bias top_h watermarking_config"""
    )
)
# Arguments of transformers that have another name here.
OUR_NAMES = {
    "output_scores": "return_scores",
    "return_dict_in_generate": "return_scores",
    "past_key_values": "cache",
}
# Settings of transformers that change its speed, its memory or what it returns beside the ids.
WITHOUT_EFFECT = words(
    """assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
    assistant_model cache_config cache_implementation compile_config continuous_batching_config
    disable_compile generation_config inputs is_assistant low_memory max_cache_len max_matching_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule output_attentions output_hidden_states output_logits
    output_scores prefill_chunk_size prompt_lookup_num_tokens return_dict_in_generate speculation_type
    synced_gpus target_lookbehind transformers_version use_cache use_mtp _from_model_config _commit_hash"""
)


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
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1  # the best of num_beams, or samples per prompt
    num_beam_groups: int = 1  # above 1: diverse beam search, with num_beams / num_beam_groups beams each
    diversity_penalty: float = 0.0  # what a token costs per beam of earlier groups that has chosen it

    # Constraints.
    no_repeat_ngram_size: int = 0  # no n-gram of this size occurs twice; 0: off
    encoder_no_repeat_ngram_size: int = 0  # none of this size of input_ids occurs; 0: off
    repetition_penalty: float = 1.0  # above 1: tokens that occurred become less likely
    bad_words_ids: list[list[int]] | None = None  # token sequences that never appear
    suppress_tokens: list[int] | None = None  # never appear
    begin_suppress_tokens: list[int] | None = None  # are not the first new token
    # (start, factor): after `start` new tokens EOS becomes likelier, growing by `factor` with every token.
    exponential_decay_length_penalty: tuple[int, float] | None = None
    forced_bos_token_id: int | None = None  # the token after a prompt of one token (T5: the start token)
    forced_eos_token_id: int | list[int] | None = None  # the last token at the maximum length
    # (batch_id, ids (T,)) -> the ids that may follow; batch_id counts rows, with beams sources.
    prefix_allowed_tokens_fn: Callable | None = None
    logits_processor: list[Callable] | None = None  # each (ids (R, T), scores (R, V)) -> scores

    # The end of a row, besides EOS and the maximum length.
    stop_strings: str | list[str] | None = None  # a row ends with the token that completes one of them
    stopping_criteria: list[Callable] | None = None  # each (ids (R, T), None) -> (R,) bool

    # Sampling.
    do_sample: bool = False  # sample instead of taking the most likely token
    temperature: float = 1.0  # below 1: sharper distribution; above 1: flatter
    top_k: int | None = 50  # sample from the k most likely tokens; 0 or None: from all
    top_p: float = 1.0  # sample from the most likely tokens that together reach this probability
    min_p: float | None = None  # sample from tokens with at least this share of the highest probability
    typical_p: float = 1.0  # sample from the most typical tokens that together reach this probability
    renormalize_logits: bool = False  # make the scores log-probabilities again, after all of the above

    # Special tokens, by default the model's.
    eos_token_id: int | list[int] | None = None  # any of these ends a row
    pad_token_id: int | None = None  # fills rows that have ended; default: the first EOS
    bos_token_id: int | None = None  # an empty prompt; decoder_start_token_id where there is none
    decoder_start_token_id: int | None = None  # first decoder input of T5

    # Not an argument: the files that values come from, by argument, for errors.
    origin: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def eos_ids(self) -> list[int]:
        """The end tokens, as a list."""
        return as_list(self.eos_token_id)

    @property
    def forced_eos_ids(self) -> list[int]:
        """The tokens forced at the last position, as a list."""
        return as_list(self.forced_eos_token_id)

    @property
    def stops(self) -> list[str]:
        """`stop_strings` as a list."""
        return [self.stop_strings] if isinstance(self.stop_strings, str) else self.stop_strings or []

    @property
    def pad_id(self) -> int:
        """The id that fills rows that have ended; 0 without any EOS."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_ids or [0])[0]

    @property
    def start_id(self) -> int:
        """The first decoder input. Raises ValueError if neither file of the checkpoint has one."""
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
            raise self.error(
                f"a prompt of {prompt_length} tokens and {new} new ones exceed the model's {position_limit}"
                " positions (n_positions): cut the prompt or lower max_new_tokens"
            )
        if prompt_length >= maximum:
            raise self.error(
                f"a prompt of {prompt_length} tokens reaches the maximum length of {maximum}:"
                " cut the prompt, raise max_length, or pass max_new_tokens instead"
            )
        minimum = self.min_length if self.min_new_tokens is None else prompt_length + self.min_new_tokens
        if minimum > maximum:
            raise self.error(
                f"the minimum length of {minimum} tokens exceeds the maximum of {maximum} (both count the"
                f" {prompt_length} of the prompt): lower min_new_tokens or min_length, or raise the maximum"
            )
        rows = max(self.num_beams, self.num_return_sequences)
        if rows * maximum > MAX_IDS:
            raise self.error(
                f"{rows} rows of up to {maximum} tokens for each source, expected at most {MAX_IDS} in all:"
                " lower max_new_tokens, max_length, num_beams or num_return_sequences"
            )
        return minimum, maximum

    def changed(self, among: Container[str]) -> list[str]:
        """Those `among` these names that have another value than the default, as "temperature=0.5"."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return [
            f"{name}={shown(value)}" for name, value, default in values if name in among and value != default
        ]

    def error(self, message: str) -> ValueError:
        """A ValueError that names the file which the first argument in the message comes from, if it does."""
        files = (file for name, file in self.origin.items() if file and name in message)
        return ValueError(": ".join([*islice(files, 1), message]))


TYPES = {name: kind for name, kind in get_type_hints(Arguments).items() if name != "origin"}


def arguments_for(model: Any, given: Mapping[str, Any]) -> Arguments:
    """The arguments of one call: those given, then the model's own defaults, then ours.

    Raises:
        ValueError: an unknown argument, a value of the wrong type or out of range, or a contradiction. The
            message names the argument and, for the model's own defaults, the file.
    """
    for name in given:
        if name in OUR_NAMES:
            raise ValueError(
                f"generate has no argument {name!r}: it is transformers' name of {OUR_NAMES[name]}"
            )
        if name in NOT_IMPLEMENTED or name in WITHOUT_EFFECT:
            raise ValueError(
                f"generate has no argument {name!r}: it is one of transformers', not implemented here"
            )
        if name not in TYPES:
            known = [*TYPES, *NOT_IMPLEMENTED]
            raise ValueError(f"generate has no argument {name!r}{did_you_mean(name, known)}")
    settings, file = settings_of(model)
    special = {name: getattr(model.config, name, None) for name in SPECIAL_TOKENS}
    chosen: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, values in ((model.config.source, special), (file, settings), ("", given)):
        for name, value in values.items():
            # None disables a special token or top-k; elsewhere it means "not given".
            is_given = value is not None or (values is given and name in (*SPECIAL_TOKENS, "top_k"))
            if name not in TYPES or not is_given:
                continue
            try:
                chosen[name], origin[name] = checked(name, value, model.config.vocab_size), source
            except ValueError as error:
                raise ValueError(f"{source}: {error}" if source else str(error)) from None
    arguments = Arguments(**chosen, origin=origin)
    check_together(arguments, model.config.vocab_size)
    warn_of_settings(model, settings, file)
    unused = [name for name in SAMPLING_ONLY if given.get(name) is not None]
    if unused and not arguments.do_sample:
        warnings.warn(f"without do_sample=True generate ignores {', '.join(unused)}", stacklevel=3)
    return arguments


def settings_of(model: Any) -> tuple[Mapping[str, Any], str]:
    """The model's own settings, and the file that they come from."""
    config_file = model.config.source
    if model.generation_config is None:
        return model.config.extra, config_file
    return model.generation_config, str(Path(config_file).with_name("generation_config.json"))


def warn_of_settings(model: Any, settings: Mapping[str, Any], file: str) -> None:
    """Warn once per model of settings that have no effect here and would change transformers' output."""
    known = {*TYPES, *WITHOUT_EFFECT}
    ignored = [
        name
        for name, value in settings.items()
        if name not in known and value is not None and value != NOT_IMPLEMENTED.get(name)
        if name in NOT_IMPLEMENTED or model.generation_config is not None  # config.json has other keys too
    ]
    if ignored and ignored != getattr(model, "ignored_settings", None):
        model.ignored_settings = ignored
        warnings.warn(f"{file}: not implemented and ignored: {', '.join(map(shown, ignored))}", stacklevel=4)


def checked(name: str, value: Any, vocab_size: int) -> Any:
    """The value of one argument as its type. Raises ValueError, naming the argument."""
    value = convert(name, value, TYPES[name])
    low, high = BOUNDS.get(name, (None, None))
    if low is not None and value is not None and not low <= value <= high:
        kind = "a whole number of " if isinstance(value, int) else ""
        expected = f"{kind}at least {low}" if high == math.inf else f"{low} to {high}"
        greedy = " (greedy: no do_sample)" if name == "temperature" else ""
        raise ValueError(f"{name} is {value}, expected {expected}{greedy}")
    for token in as_list(value) if name in (*WITHIN_VOCABULARY, *ANY_IDS) else []:
        if token < 0 or (name in WITHIN_VOCABULARY and token >= vocab_size):
            raise ValueError(f"{name} holds {token}, expected token ids from 0 to {vocab_size - 1}")
    if name == "bad_words_ids" and not all(value):
        raise ValueError("bad_words_ids holds an empty word, expected lists of at least one token id")
    if name == "stop_strings" and "" in ([value] if isinstance(value, str) else value):
        raise ValueError("stop_strings holds an empty text, expected at least one character")
    return value


def check_together(arguments: Arguments, vocab_size: int) -> None:
    """Raise ValueError, naming the arguments, for values that contradict each other or exceed the memory."""
    beams, sequences = arguments.num_beams, arguments.num_return_sequences
    if sequences > 1 and beams == 1 and not arguments.do_sample:
        raise arguments.error(
            f"num_return_sequences={sequences} needs num_beams of at least {sequences} or do_sample=True:"
            " greedy search has one answer"
        )
    if 1 < beams < sequences:
        raise arguments.error(f"num_return_sequences is {sequences}, more than num_beams, {beams}")
    groups = arguments.num_beam_groups
    if beams % groups:
        raise arguments.error(f"num_beams is {beams}, expected a multiple of num_beam_groups, {groups}")
    if groups > 1 and arguments.do_sample:
        raise arguments.error(
            "num_beam_groups above 1 needs do_sample=False: diverse beam search cannot sample"
        )
    if groups == 1 and arguments.diversity_penalty > 0:
        raise arguments.error("diversity_penalty needs num_beam_groups above 1: it acts between groups")
    name, rows = ("num_beams", beams) if beams > 1 else ("num_return_sequences", sequences)
    most = (MAX_CATEGORIES if beams > 1 and arguments.do_sample else MAX_SCORES) // vocab_size
    if rows > max(1, most):
        raise arguments.error(
            f"{name} is {rows}, expected at most {most} with a vocabulary of {vocab_size} tokens"
        )


def position_limit(model: Any) -> int | None:
    """GPT-2's number of positions; None for T5, whose positions are relative."""
    return getattr(model.config, "n_positions", None)


def as_list(tokens: Any) -> list[int]:
    """One token id, a list of ids or words, or None as a flat list of ids."""
    if tokens is None:
        return []
    return [id for item in tokens for id in as_list(item)] if isinstance(tokens, list) else [tokens]
