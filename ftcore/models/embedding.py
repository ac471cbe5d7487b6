"""A guard in front of the token embeddings."""

import torch
from torch import Tensor


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Refuse ids without an embedding row, before a kernel reads past the table (on CUDA: for good).

    Raises:
        ValueError: names the largest or smallest id and the number of rows.
    """
    if torch.compiler.is_compiling() or input_ids.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise ValueError(f"token id {wrong}, but the embedding has rows 0 to {vocab_size - 1} (vocab_size)")
