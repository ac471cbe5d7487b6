"""The activation functions that published T5 and GPT-2 configurations name."""

from collections.abc import Callable

from torch import nn

# "gelu_new" is Hendrycks and Gimpel's tanh approximation, which GPT-2 and T5 v1.1 were trained with;
# "gelu" is the exact one. They differ by up to 5e-4, enough to break parity.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu_new": lambda: nn.GELU(approximate="tanh"),
    "gelu_fast": lambda: nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": lambda: nn.GELU(approximate="tanh"),
}
