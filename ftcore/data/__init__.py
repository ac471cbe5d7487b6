"""Text to batches: tokenizers, tasks, datasets and the loader."""

from ftcore.data.corpus import Corpus, read_corpus
from ftcore.data.dataset import Dataset, ExampleDataset
from ftcore.data.loader import DataLoader
from ftcore.data.pretraining import CausalLMDataset, SpanCorruption, make_pretraining_dataset
from ftcore.data.records import Record, make_records, read_records, split_records
from ftcore.data.tasks import CORPUS_TASKS, TASKS, Task, load_task, prompt
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
    "Task",
    "load_task",
    "load_tokenizer",
    "make_pretraining_dataset",
    "make_records",
    "prompt",
    "read_corpus",
    "read_records",
    "split_records",
]
