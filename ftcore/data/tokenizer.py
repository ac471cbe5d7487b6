"""Text <-> token ids: which tokenizer lies in a directory. Each kind has a page of its own.

    files in the directory             tokenizer                    encode appends   <extra_id_0>
    spiece.model                       T5: SentencePiece unigrams   </s>             the highest id
    tokenizer.json, a T5Tokenizer's    the same                     </s>             the highest id
    vocab.json and merges.txt          GPT-2: byte-level BPE        nothing          -
    the same, a RobertaTokenizer's     CodeT5: the same             </s>, <s> first  the highest id
    tokenizer.json, any other          what the file says           what it says     -
    none, but the class ByT5Tokenizer  bytes: id = byte + 3         </s>             259, the others above it

Where several are there, tokenizer.json wins. Whatever the form, the ids are those of transformers, which is
followed in its details. One of them: T5's sentinels swallow the spaces around them if the files say so
(`lstrip`, `rstrip`). tokenizer.json files often do, spiece.model alone does not.
"""

import os
from typing import TYPE_CHECKING

from tokenizers import Tokenizer as Pipeline
from tokenizers.models import BPE

from ftcore.checkpoints.hub import resolve_directory
from ftcore.data.tokenizer_bpe import GPT2_TOKENS, ROBERTA_TOKENS, bpe_from_merges
from ftcore.data.tokenizer_bytes import bytes_from_class
from ftcore.data.tokenizer_files import TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import IGNORED_LABEL, PieceTokenizer, Tokenizer
from ftcore.data.tokenizer_unigram import unigrams_from_json, unigrams_from_spiece

if TYPE_CHECKING:
    from ftcore.models import GPT2Config, T5Config

__all__ = ["IGNORED_LABEL", "Tokenizer", "check_vocabulary", "load_tokenizer"]


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer whose files lie in a directory.

    Args:
        name: a directory, or the name of a model on the hub (see `resolve_directory`).

    Raises:
        FileNotFoundError: no such directory, or no tokenizer in it.
        ValueError: a file that is damaged or of another kind; the message names it.
    """
    files = TokenizerFiles(resolve_directory(name, weights=False))
    if files.tokenizer_class == "ByT5Tokenizer":
        return bytes_from_class(files)
    if "tokenizer.json" in files.content:
        return unigrams_from_json(files) if _is_t5(files) else _as_the_file_has_it(files)
    if "spiece.model" in files.content:
        _require_class(files, "spiece.model", "T5Tokenizer", "MT5Tokenizer")
        return unigrams_from_spiece(files)
    if "vocab.json" in files.content and "merges.txt" in files.content:
        _require_class(files, "vocab.json", "GPT2Tokenizer", "RobertaTokenizer")
        return bpe_from_merges(files)
    raise FileNotFoundError(
        f"{files.directory}: no tokenizer; expected tokenizer.json, spiece.model or vocab.json + merges.txt"
    )


def _is_t5(files: TokenizerFiles) -> bool:
    """Whether the class takes no more than pieces from tokenizer.json. Beside a uMT5 no class does."""
    model = files.json("tokenizer.json").get("model")
    is_unigram = isinstance(model, dict) and model.get("type") == "Unigram"
    return is_unigram and files.tokenizer_class in (None, "T5Tokenizer") and files.model_type != "umt5"


def _as_the_file_has_it(files: TokenizerFiles) -> PieceTokenizer:
    """The pipeline in tokenizer.json, whatever it is, without padding and truncation."""
    try:
        pipeline = Pipeline.from_str(files.content["tokenizer.json"].decode())
    except Exception as error:  # the tokenizers package raises nothing more particular
        raise files.error("tokenizer.json", f"not a tokenizer ({type(error).__name__}: {error})") from None
    if (
        files.tokenizer_class == "T5Tokenizer"
    ):  # beside a uMT5; elsewhere this class would read it in its own way
        files.name_class("PreTrainedTokenizerFast")
    pipeline.no_padding()
    pipeline.no_truncation()
    defaults = {None: GPT2_TOKENS, "GPT2Tokenizer": GPT2_TOKENS, "RobertaTokenizer": ROBERTA_TOKENS}
    special = read_special_tokens(files, defaults.get(files.tokenizer_class, {}))
    special.add_to(pipeline)
    tidy = files.tidy and not isinstance(pipeline.model, BPE)  # transformers leaves a BPE's spaces alone
    return PieceTokenizer(files.content, pipeline, special.names(), tidy)


def _require_class(files: TokenizerFiles, vocabulary: str, *expected: str) -> None:
    """Refuse a vocabulary that another class would use in another way, rather than give wrong ids."""
    if files.tokenizer_class not in (None, *expected):
        raise files.error(
            vocabulary,
            f"read as a {expected[0]}'s, but tokenizer_class is {files.tokenizer_class}; "
            "save that tokenizer with transformers, in the form of a tokenizer.json",
        )


def check_vocabulary(
    tokenizer: Tokenizer, config: "T5Config | GPT2Config", where: str | os.PathLike[str]
) -> None:
    """Make sure that each id of a tokenizer has a row in a model's embedding.

    Fewer ids than rows is usual: T5 has 32100 ids and, rounded up for the hardware, 32128 rows.

    Raises:
        ValueError: there are more ids than rows; the message starts with `where` and names both numbers.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{os.fspath(where)}: the tokenizer has {tokenizer.vocab_size} ids, but the embedding only "
            f"{config.vocab_size} rows (vocab_size in config.json); take the tokenizer that belongs to it"
        )
