"""The byte-level BPE of GPT-2 (Radford et al. 2019, section 2.2), out of vocab.json and merges.txt.

A text's bytes are written as 256 printable letters, " " as "Ġ". Words are cut into these and then neighbours
merged, always the pair that comes first in merges.txt, until no pair is left that is in it. Any text can be
written so, and comes back unchanged.

GPT-2 appends nothing to a text. RoBERTa (Liu et al. 2019) puts it between <s> and </s>, and CodeT5, a T5 for
code, took RoBERTa's tokenizer over, with T5's sentinels behind its vocabulary.
"""

from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, pre_tokenizers, processors
from tokenizers.models import BPE

from ftcore.data.tokenizer_files import TokenizerFiles, read_special_tokens
from ftcore.data.tokenizer_interface import PieceTokenizer

GPT2_TOKENS = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}


def bpe_from_merges(files: TokenizerFiles) -> PieceTokenizer:
    """GPT-2's or RoBERTa's: the tokens in vocab.json, and the pairs to merge, the first to come first."""
    vocabulary = files.json("vocab.json")
    if not all(isinstance(number, int) and number >= 0 for number in vocabulary.values()):
        raise files.error("vocab.json", "expected an object of tokens and their ids")
    pipeline = Pipeline(BPE(vocabulary, _merges(files, vocabulary)))
    add_prefix_space = bool(files.setting("add_prefix_space", False))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    pipeline.decoder = decoders.ByteLevel()

    is_roberta = files.tokenizer_class == "RobertaTokenizer"
    special = read_special_tokens(files, ROBERTA_TOKENS if is_roberta else GPT2_TOKENS)
    special.add_to(pipeline)
    names = special.names()
    if is_roberta:
        before, behind = [names["cls_token"]], [names["sep_token"]]
    else:
        add_bos = files.setting("add_bos_token", False) and "bos_token" in names
        before = [names["bos_token"]] if add_bos else []
        behind = [names["eos_token"]] if files.setting("add_eos_token", False) else []
    pipeline.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *behind],
        special_tokens=[(token, pipeline.token_to_id(token)) for token in {*before, *behind}],
    )
    return PieceTokenizer(files.content, pipeline, names, tidy=False)


def _merges(files: TokenizerFiles, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs in merges.txt, checked here: one that is not in the vocabulary makes the package panic."""
    merges = []
    lines = files.content["merges.txt"].decode(errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            expected = "expected two tokens of vocab.json that make up a third"
            raise files.error(f"merges.txt:{number}", f"found {line!r}, {expected}")
        merges.append((left, right))
    return merges
