"""The last line of the board: a student's GPT-2 and T5 against transformers'."""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ftcore.data.tokenizer import load_tokenizer
from ftcore.lessons.step import same_module, shipped

TEXT = "question: Where does Selorina live? context: Selorina's home is in Wenhaven."


def against_transformers(t5: ModuleType) -> str:
    """Compare the student's models with transformers', on the shipped weights; skipped if one is missing.

    Args:
        t5: the module of step 10; that of step 6 is imported.
    """
    gpt2_directory, t5_directory = shipped("gpt2-mini"), shipped("t5-mini")
    if gpt2_directory is None or t5_directory is None:
        return "Not compared with transformers: the weights are in a clone of ftcore."
    try:
        import transformers
    except ImportError:
        return "Not compared with transformers, which is not installed: pip install transformers"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    ids = torch.tensor([load_tokenizer(gpt2_directory).encode("I feel lonely, but")])
    _same(import_module("step06_gpt2").GPT2, transformers.GPT2LMHeadModel, gpt2_directory, (ids,))
    ids = torch.tensor([load_tokenizer(t5_directory).encode(TEXT)])
    inputs = (ids, torch.ones_like(ids), torch.tensor([[0, 5, 6, 7]]))
    _same(t5.T5, transformers.T5ForConditionalGeneration, t5_directory, inputs)
    return f"Your GPT-2 and your T5 equal those of transformers {transformers.__version__}, module by module."


def _same(mine: Any, theirs: Any, directory: Path, inputs: tuple[torch.Tensor, ...]) -> None:
    reference = theirs.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
    names = ("input_ids", "attention_mask", "decoder_input_ids")
    keywords = dict(zip(names, inputs, strict=False)) | {"use_cache": False}
    what = f"Your {mine.__name__}, against transformers',"
    same_module(what, mine(reference.config), reference, inputs, reference_inputs=keywords)
