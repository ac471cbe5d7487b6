"""The steps of the course, in order."""

from ftcore.lessons import attention_steps, generation_steps, gpt2_steps, t5_steps, training_steps
from ftcore.lessons.step import Step

STEPS = (
    Step("softmax", "softmax and cross-entropy by hand", attention_steps.softmax),
    Step("attention", "scaled dot-product attention", attention_steps.attention),
    Step("masks", "causal and padding masks", attention_steps.masks),
    Step("heads", "several heads", attention_steps.heads),
    Step("gpt2_block", "GPT-2's feed-forward layer, norm and block", gpt2_steps.gpt2_block),
    Step("gpt2", "GPT-2 whole: it loads a checkpoint and writes", gpt2_steps.gpt2),
    Step("relative_position", "RMSNorm and T5's relative positions", t5_steps.relative_position),
    Step("t5_encoder", "T5's encoder block, without the scale", t5_steps.t5_encoder),
    Step("t5_decoder", "cross-attention and T5's decoder block", t5_steps.t5_decoder),
    Step("t5", "T5 whole: it loads a checkpoint and answers", t5_steps.t5),
    Step("cache", "the key-value cache", generation_steps.cache),
    Step("search", "greedy and beam search", generation_steps.search),
    Step("training", "a training step", training_steps.training),
    Step("lora", "low-rank adapters", training_steps.lora),
)
