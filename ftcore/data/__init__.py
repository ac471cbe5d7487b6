"""Text to batches: tokenizers, tasks, datasets and the loader. Names are imported when first used."""

from typing import TYPE_CHECKING

from ftcore import lazily

if TYPE_CHECKING:
    from ftcore.data.corpus import Corpus, read_corpus
    from ftcore.data.dataset import Dataset, ExampleDataset
    from ftcore.data.loader import DataLoader
    from ftcore.data.pretraining import CausalLMDataset, SpanCorruption, make_pretraining_dataset
    from ftcore.data.tasks import CORPUS_TASKS, TASKS, Record, prompt, read_records, split_records
    from ftcore.data.tokenizer import load_tokenizer

__all__ = [
    "CORPUS_TASKS",
    "TASKS",
    "CausalLMDataset",
    "Corpus",
    "DataLoader",
    "Dataset",
    "ExampleDataset",
    "Record",
    "SpanCorruption",
    "load_tokenizer",
    "make_pretraining_dataset",
    "prompt",
    "read_corpus",
    "read_records",
    "split_records",
]

__getattr__ = lazily(
    __name__,
    {
        "CORPUS_TASKS": "ftcore.data.tasks",
        "TASKS": "ftcore.data.tasks",
        "Record": "ftcore.data.tasks",
        "prompt": "ftcore.data.tasks",
        "read_records": "ftcore.data.tasks",
        "split_records": "ftcore.data.tasks",
        "Dataset": "ftcore.data.dataset",
        "ExampleDataset": "ftcore.data.dataset",
        "Corpus": "ftcore.data.corpus",
        "read_corpus": "ftcore.data.corpus",
        "CausalLMDataset": "ftcore.data.pretraining",
        "SpanCorruption": "ftcore.data.pretraining",
        "make_pretraining_dataset": "ftcore.data.pretraining",
        "DataLoader": "ftcore.data.loader",
        "load_tokenizer": "ftcore.data.tokenizer",
    },
)
