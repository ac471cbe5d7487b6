"""Configurations of the models (config.json), and code shared by both models."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from os import PathLike
from reprlib import repr as shown
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

AnyConfig = TypeVar("AnyConfig", bound="Config")
AnyModel = TypeVar("AnyModel", bound="CheckpointMixin")

# transformers' names; several name the same function. "gelu_new" is the tanh approximation
# (Hendrycks and Gimpel 2016) that GPT-2 and T5 v1.1 were trained with, "gelu" the exact function. They differ
# by up to 5e-4, enough to break parity.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_python": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu_accurate": lambda: nn.GELU(approximate="tanh"),
    "gelu_fast": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
    "gelu_python_tanh": lambda: nn.GELU(approximate="tanh"),
}

# Far above every published model; a damaged or hostile file is refused before it takes time and memory.
MAX_SIZE = 2**24  # vocabulary, widths, lengths, number of heads
MAX_LAYERS = 256  # of a stack


@dataclass(kw_only=True)
class Config:
    """Base of GPT2Config and T5Config. Keys of config.json that are not fields are kept in `extra`."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    is_encoder_decoder: ClassVar[bool]
    aliases: ClassVar[dict[str, str]] = {"torch_dtype": "dtype"}  # other names of a key -> its name
    source: ClassVar[str] = "config.json"  # of an instance from a file: its path, for errors

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls: type[AnyConfig], values: dict[str, Any], where: str = "config.json") -> AnyConfig:
        """Build a configuration from the keys of config.json.

        Raises:
            ValueError: a value of the wrong type or out of range, or two keys that contradict each other; the
                message names `where` and the keys.
        """
        types = _types(cls)
        named = {key: types.get(cls.aliases.get(key, key)) for key in values}
        try:
            values = {key: convert(key, value, named[key]) for key, value in values.items()}
            values = cls._resolve_aliases(values)
            known = {key: value for key, value in values.items() if key in types}
            extra = {key: value for key, value in values.items() if key not in types}
            config = cls(**known, extra=extra)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        vars(config)["source"] = where
        return config

    def __post_init__(self) -> None:
        for name, expected in _types(type(self)).items():
            setattr(self, name, convert(name, getattr(self, name), expected))

    @classmethod
    def _resolve_aliases(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Rename aliases to the names of the fields; an alias with the value null is dropped."""
        resolved = {key: value for key, value in values.items() if key not in cls.aliases}
        for alias, name in cls.aliases.items():
            value = values.get(alias)
            if value is not None and resolved.setdefault(name, value) != value:
                raise ValueError(
                    f"{alias} is {shown(value)}, but {name}, which means the same, "
                    f"is {shown(resolved[name])}; remove one of them"
                )
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, `extra` included."""
        known = {name: _plain(getattr(self, name)) for name in _types(type(self))}
        return {
            **self.extra,
            **known,
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "is_encoder_decoder": self.is_encoder_decoder,
        }

    def require_range(self, low: float, high: float, *names: str) -> None:
        """Raise ValueError unless these fields are in [low, high]."""
        for name in names:
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {low} to {high}")

    def require_activation(self, name: str, function: str) -> None:
        """Raise ValueError unless `function`, selected by the field `name`, is in ACTIVATIONS."""
        if function not in ACTIVATIONS:
            raise ValueError(
                f"{name} is {shown(getattr(self, name))}: unknown activation function {shown(function)}, "
                f"known are {', '.join(sorted(ACTIVATIONS))}"
            )


@dataclass(kw_only=True)
class GPT2Config(Config):
    """GPT-2's config.json, as far as it affects the computation; the defaults are GPT-2 small."""

    model_type: ClassVar[str] = "gpt2"
    architecture: ClassVar[str] = "GPT2LMHeadModel"
    is_encoder_decoder: ClassVar[bool] = False
    aliases: ClassVar[dict[str, str]] = Config.aliases | {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None  # feed-forward width; None: 4 * n_embd
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True  # divide scores by sqrt(K)
    scale_attn_by_inverse_layer_idx: bool = False  # and by the number of the layer, from 1
    reorder_and_upcast_attn: bool = False  # float32 scores under half precision: `attend` always has them
    add_cross_attention: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "GPT2Config":
        """See `Config.from_dict`."""
        if "n_ctx" in values:  # OpenAI's name of n_positions, often stale where both are present
            values = {"n_positions": values["n_ctx"]} | values
        return super().from_dict(values, where)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_range(1, MAX_SIZE, "vocab_size", "n_positions", "n_embd", "n_head")
        self.require_range(1, MAX_LAYERS, "n_layer")
        if self.n_inner is not None:
            self.require_range(1, MAX_SIZE, "n_inner")
        self.require_range(0, math.inf, "layer_norm_epsilon", "initializer_range")
        self.require_range(0, 1, "resid_pdrop", "embd_pdrop", "attn_pdrop")
        self.require_activation("activation_function", self.activation_function)
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, which {self.n_head} heads (n_head) do not divide")
        if self.add_cross_attention:
            raise ValueError("add_cross_attention is true, but GPT-2 with cross-attention is not supported")


@dataclass(kw_only=True)
class T5Config(Config):
    """T5's config.json, as far as it affects the computation; the defaults are T5-small."""

    model_type: ClassVar[str] = "t5"
    architecture: ClassVar[str] = "T5ForConditionalGeneration"
    is_encoder_decoder: ClassVar[bool] = True
    aliases: ClassVar[dict[str, str]] = Config.aliases | {
        "hidden_size": "d_model",
        "head_dim": "d_kv",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
    }
    bias_in_every_block: ClassVar[bool] = False  # otherwise all blocks share the position bias of block 0

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64  # K; num_heads * d_kv may differ from d_model
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None  # None: num_layers
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    initializer_factor: float = 1.0
    feed_forward_proj: str = "relu"  # or "gated-gelu", meaning gelu_new(wi_0) * wi_1; "gated-silu", ...
    dense_act_fn: str | None = None  # newer files spell feed_forward_proj in two keys: "gelu_new"
    is_gated_act: bool | None = None  # and true
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None  # by 1/sqrt(D), before the head; None: if the head is tied
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "T5Config":
        """See `Config.from_dict`."""
        if "feed_forward_proj" not in values and values.keys() & {"dense_act_fn", "is_gated_act"}:
            gate = "gated-" if values.get("is_gated_act") else ""
            values = values | {"feed_forward_proj": f"{gate}{values.get('dense_act_fn') or 'relu'}"}
        return super().from_dict(values, where)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_layers
        self.require_range(1, MAX_SIZE, "vocab_size", "d_model", "d_kv", "d_ff", "num_heads")
        self.require_range(1, MAX_LAYERS, "num_layers", "num_decoder_layers")
        self.require_range(4, MAX_SIZE, "relative_attention_num_buckets")
        self.require_range(1, MAX_SIZE, "relative_attention_max_distance")
        self.require_range(0, math.inf, "layer_norm_epsilon", "initializer_factor")
        self.require_range(0, 1, "dropout_rate")
        if self.num_heads * self.d_kv > MAX_SIZE:
            inner = f"num_heads is {self.num_heads} and d_kv {self.d_kv}"
            raise ValueError(f"{inner}, expected a product of at most {MAX_SIZE}")
        self._resolve_feed_forward()
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if distance <= buckets // 2:  # the decoder's first buckets // 2 distances have one bucket each
            expected = f"above {buckets // 2}, half of relative_attention_num_buckets"
            raise ValueError(f"relative_attention_max_distance is {distance}, expected {expected}")
        if self.scale_decoder_outputs is None:
            self.scale_decoder_outputs = self.tie_word_embeddings

    def _resolve_feed_forward(self) -> None:
        """Derive `dense_act_fn` and `is_gated_act` from `feed_forward_proj`; given values must agree."""
        function = self.feed_forward_proj.removeprefix("gated-")
        gated = function != self.feed_forward_proj
        # "gated-gelu" of the published v1.1 models means gelu_new; a few later models use the exact gelu.
        functions = ["gelu_new", "gelu"] if gated and function == "gelu" else [function]
        if self.dense_act_fn is not None:
            self.require_activation("dense_act_fn", self.dense_act_fn)
        self.require_activation("feed_forward_proj", function)
        self.dense_act_fn = self.dense_act_fn or functions[0]
        self.is_gated_act = gated if self.is_gated_act is None else self.is_gated_act
        for key, agreeing in (("dense_act_fn", functions), ("is_gated_act", [gated])):
            if getattr(self, key) not in agreeing:
                proj = f"feed_forward_proj is {shown(self.feed_forward_proj)}"
                raise ValueError(f"{key} is {shown(getattr(self, key))}, but {proj}; remove one of them")


@dataclass(kw_only=True)
class MT5Config(T5Config):
    """mT5 (Xue et al. 2021): multilingual v1.1. The decoder's output is never scaled, tied head or not."""

    model_type: ClassVar[str] = "mt5"
    architecture: ClassVar[str] = "MT5ForConditionalGeneration"

    vocab_size: int = 250112
    d_ff: int = 1024
    num_layers: int = 8
    num_heads: int = 6
    feed_forward_proj: str = "gated-gelu"
    decoder_start_token_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scale_decoder_outputs = False


@dataclass(kw_only=True)
class UMT5Config(MT5Config):
    """uMT5 (Chung et al. 2023): mT5 with a position bias per block. The decoder's output is always scaled."""

    model_type: ClassVar[str] = "umt5"
    architecture: ClassVar[str] = "UMT5ForConditionalGeneration"
    bias_in_every_block: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scale_decoder_outputs = True


class CheckpointMixin:
    """Methods of both models that other packages implement: ftcore.checkpoints and ftcore.decoding."""

    @classmethod
    def from_pretrained(cls: type[AnyModel], directory: str | PathLike[str], **options: Any) -> AnyModel:
        """`ftcore.load_model` for a checkpoint of this class."""
        from ftcore.checkpoints.checkpoint import load_as  # imported here, since it imports the models

        return load_as(cls, directory, **options)

    def save_pretrained(self, directory: str | PathLike[str], **options: Any) -> None:
        """Save a checkpoint, see `ftcore.save_model`."""
        from ftcore.checkpoints.checkpoint import save_model

        save_model(self, directory, **options)  # type: ignore[arg-type]

    def generate(self, *inputs: Any, **arguments: Any) -> Any:
        """`ftcore.decoding.generate` with this model."""
        from ftcore.decoding import generate

        return generate(self, *inputs, **arguments)  # type: ignore[arg-type]


def check_ids(input_ids: Tensor, vocab_size: int, past_length: int = 0) -> None:
    """Reject ids without an embedding row before a kernel indexes out of bounds.

    On CUDA an out-of-bounds index corrupts the context until the process exits. A single new token after a
    cache is not checked: it comes from the model's own head, and reading its value would synchronize with the
    GPU at every step.

    Raises:
        ValueError: ids that are not integers of shape (B, T), or an id outside of the vocabulary.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        kind = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}".removeprefix("torch.")
        raise ValueError(f"token ids are {kind}, expected whole numbers of shape (rows, tokens)")
    is_decoding_step = past_length > 0 and input_ids.shape[1] == 1
    if is_decoding_step or input_ids.numel() == 0:
        return
    low, high = torch.stack(torch.aminmax(input_ids)).tolist()
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong}, but the embedding has rows 0 to {vocab_size - 1} (vocab_size)")


def set_dropout_rates(config: Any, rate: float) -> None:
    """Set every dropout rate of a T5 or GPT-2 configuration, ftcore's or transformers'."""
    for name in ("dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, rate)


def convert(name: str, value: Any, expected: Any) -> Any:
    """A value of the type `expected`; scalars and arrays of numpy and torch become Python's, tuples lists.

    Args:
        expected: int, float, bool, str, Callable, None, a Literal of strings, list[...], tuple[...] (a list
            of that length), or a union of these; None accepts every type.

    Raises:
        ValueError: another type, or NaN, infinite or beyond 64 bits; the message names `name`.
    """
    if expected is None:
        return value
    value = _plain(value)
    if not _has_type(value, expected):
        raise ValueError(f"{name} is {shown(value)}, expected {_describe(expected)}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _types(config: type[Config]) -> dict[str, Any]:
    hints = get_type_hints(config)
    return {f.name: hints[f.name] for f in fields(config) if f.name != "extra"}


def _has_type(value: Any, expected: Any) -> bool:
    if isinstance(value, bool) and expected in (int, float):
        return False
    if isinstance(value, int) and expected in (int, float):
        return abs(value) < 2**63
    if expected is float:
        return isinstance(value, float) and math.isfinite(value)
    kind, parts = get_origin(expected), get_args(expected)
    if kind is Literal:
        return isinstance(value, str) and value in parts
    if kind is list:
        return isinstance(value, list) and all(_has_type(item, parts[0]) for item in value)
    if kind is tuple:
        return isinstance(value, list) and len(value) == len(parts) and all(map(_has_type, value, parts))
    if parts:  # a union
        return any(_has_type(value, option) for option in parts)
    return isinstance(value, expected)


def _describe(expected: Any) -> str:
    names: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}
    names |= {type(None): "null", list[int]: "a list of whole numbers"}
    names |= {list[list[int]]: "a list of lists of whole numbers", tuple[int, float]: "a list of two numbers"}
    names |= {list[str]: "a list of strings", Callable: "a function", list[Callable]: "a list of functions"}
    if expected in names:
        return names[expected]
    describe = repr if get_origin(expected) is Literal else _describe
    return " or ".join(describe(option) for option in get_args(expected))
