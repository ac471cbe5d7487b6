"""Text to batches: tokenizers, tasks, datasets and the loader. Names are imported when first used."""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.data.dataset import Dataset
    from ftcore.data.loader import DataLoader
    from ftcore.data.tasks import TASKS, Record, prompt, read_records, split_records
    from ftcore.data.tokenizer import load_tokenizer

__all__ = [
    "TASKS",
    "DataLoader",
    "Dataset",
    "Record",
    "load_tokenizer",
    "prompt",
    "read_records",
    "split_records",
]

__getattr__ = lazily(
    __name__,
    {
        "TASKS": "ftcore.data.tasks",
        "Record": "ftcore.data.tasks",
        "prompt": "ftcore.data.tasks",
        "read_records": "ftcore.data.tasks",
        "split_records": "ftcore.data.tasks",
        "Dataset": "ftcore.data.dataset",
        "DataLoader": "ftcore.data.loader",
        "load_tokenizer": "ftcore.data.tokenizer",
    },
)
