"""The steps of the course, in order."""

from types import ModuleType

from ftcore.lessons import attention_steps, gpt2_steps
from ftcore.lessons.step import Step


def _not_written(module: ModuleType) -> None:
    raise NotImplementedError


STEPS = (
    Step("softmax", "softmax and cross-entropy by hand", attention_steps.softmax),
    Step("attention", "scaled dot-product attention", attention_steps.attention),
    Step("masks", "causal and padding masks", attention_steps.masks),
    Step("heads", "several heads", attention_steps.heads),
    Step("gpt2_block", "GPT-2's feed-forward layer, norm and block", gpt2_steps.gpt2_block),
    Step("gpt2", "GPT-2 whole: it loads a checkpoint and writes", gpt2_steps.gpt2),
    Step("relative_position", "RMSNorm and T5's relative positions", _not_written),
    Step("t5_encoder", "T5's encoder block, without the scale", _not_written),
    Step("t5_decoder", "cross-attention and T5's decoder block", _not_written),
    Step("t5", "T5 whole: it loads a checkpoint and answers", _not_written),
    Step("cache", "the key-value cache", _not_written),
    Step("search", "greedy and beam search", _not_written),
    Step("training", "a training step", _not_written),
    Step("lora", "low-rank adapters", _not_written),
)
