"""A guard in front of the token embeddings."""

import torch
from torch import Tensor


def check_ids(input_ids: Tensor, vocab_size: int, past_length: int = 0) -> None:
    """Refuse ids without an embedding row, before a kernel reads past the table (on CUDA: for good).

    One new token behind a cache is not looked at: it comes from the model's own head, and CUDA would have
    to be waited for at every step.

    Raises:
        ValueError: names the shape, if that is not (B, T), or the id and the number of rows.
    """
    if input_ids.dim() != 2 or input_ids.is_floating_point():
        kind = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}".removeprefix("torch.")
        raise ValueError(f"token ids are {kind}, expected whole numbers of shape (rows, tokens)")
    one_new_token = past_length > 0 and input_ids.shape[1] == 1
    if one_new_token or input_ids.numel() == 0 or torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong}, but the embedding has rows 0 to {vocab_size - 1} (vocab_size)")
