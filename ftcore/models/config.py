"""What the two configurations have in common: reading and writing config.json without losing a key."""

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

from ftcore.models.activations import ACTIVATIONS

AnyConfig = TypeVar("AnyConfig", bound="Config")


@dataclass(kw_only=True)
class Config:
    """Base of GPT2Config and T5Config. Keys of config.json that are no fields here survive in `extra`."""

    model_type: ClassVar[str]
    architecture: ClassVar[str]
    is_encoder_decoder: ClassVar[bool]
    other_names: ClassVar[dict[str, str]] = {"torch_dtype": "dtype"}  # what else files call a key

    extra: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls: type[AnyConfig], values: dict[str, Any], where: str = "config.json") -> AnyConfig:
        """A configuration out of the keys of config.json.

        Raises:
            ValueError: a value of the wrong type or out of range, or two keys that contradict each other; the
                message names `where` and the key, or both.
        """
        types = {f.name: get_type_hints(cls)[f.name] for f in fields(cls) if f.name != "extra"}
        for key, value in values.items():
            expected = types.get(cls.other_names.get(key, key))
            if expected is not None and not _fits(value, expected):
                raise ValueError(f"{where}: {key} is {value!r}, expected {_describe(expected)}")
        values = cls._renamed(values, where)
        known = {key: value for key, value in values.items() if key in types}
        extra = {key: value for key, value in values.items() if key not in types}
        try:
            return cls(**known, extra=extra)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    @classmethod
    def _renamed(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """The same with each key under the name that it has here; `"torch_dtype": null` says nothing."""
        renamed = {key: value for key, value in values.items() if key not in cls.other_names}
        for other, name in cls.other_names.items():
            value = values.get(other)
            if value is not None and renamed.setdefault(name, value) != value:
                raise ValueError(
                    f"{where}: {other} is {value!r}, but {name}, which means the same, is {renamed[name]!r}; "
                    "remove one of them"
                )
        return renamed

    def to_dict(self) -> dict[str, Any]:
        """The keys of config.json, those that we do not use included."""
        known = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        return {
            **self.extra,
            **known,
            "model_type": self.model_type,
            "architectures": [self.architecture],
            "is_encoder_decoder": self.is_encoder_decoder,
        }

    def require_positive(self, *names: str) -> None:
        """Raise a ValueError that names the first of these fields which is not at least 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")

    def require_probability(self, *names: str) -> None:
        """Raise a ValueError that names the first of these fields which is not from 0 to 1."""
        for name in names:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")

    def require_activation(self, name: str, function: str) -> None:
        """Raise a ValueError that names this field if we do not know the function that it asks for."""
        if function not in ACTIVATIONS:
            raise ValueError(
                f"{name} is {getattr(self, name)!r}: unknown activation function {function!r}, "
                f"known are {', '.join(sorted(ACTIVATIONS))}"
            )


def set_dropout_rates(config: Any, rate: float) -> None:
    """All rates of dropout that a config of T5 or GPT-2 has, ftcore's or transformers'."""
    for name in ("dropout_rate", "resid_pdrop", "embd_pdrop", "attn_pdrop"):
        if hasattr(config, name):
            setattr(config, name, rate)


def _fits(value: Any, expected: Any) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_args(expected) and expected != list[int]:  # a union
        return any(_fits(value, option) for option in get_args(expected))
    if expected == list[int]:
        return isinstance(value, list) and all(_fits(item, int) for item in value)
    return isinstance(value, expected)


def _describe(expected: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    names |= {type(None): "null", list[int]: "a list of whole numbers"}
    options = [expected] if expected in names else list(get_args(expected))
    return " or ".join(names[option] for option in options)
