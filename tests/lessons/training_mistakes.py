"""Planted mistakes of steps 13 and 14."""

from tests.helpers.course_checks import Planted

MISTAKES = [
    # --- 13: a training step
    Planted(
        13,
        "logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()",
        "logits.flatten(0, 1), labels.flatten()",
        "next_token_loss",
        "expected with the label at t + 1",
    ),
    Planted(
        13,
        "    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()\n"
        "    if norm > max_norm:\n        for gradient in gradients:\n"
        "            gradient *= max_norm / norm\n",
        "    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()\n"
        "    for gradient in gradients:\n"
        "        gradient *= (max_norm / gradient.norm()).clamp(max=1)\n",
        "clip_gradients",
        "clipped alone",
    ),
    Planted(13, "    if norm > max_norm:\n", "    if True:\n", "clip_gradients", "scaled up"),
    Planted(13, "gradient *= max_norm", "gradient = gradient * max_norm", "clip_gradients", "are unchanged"),
    Planted(
        13,
        "mean / (1 - beta1**self.steps)",
        "mean",
        "AdamW",
    ),
    Planted(
        13,
        "            corrected = mean / (1 - beta1**self.steps)\n"
        "            corrected_square = mean_square / (1 - beta2**self.steps)\n",
        "            corrected, corrected_square = mean, mean_square\n",
        "AdamW",
        "bias correction is missing",
    ),
    Planted(
        13,
        "            weight -= lr * self.weight_decay * weight\n",
        "            weight -= self.weight_decay * weight\n",
        "AdamW",
        "not multiplied by the learning rate",
    ),
    Planted(
        13,
        "            mean += (1 - beta1) * (weight.grad - mean)\n"
        "            mean_square += (1 - beta2) * (weight.grad**2 - mean_square)\n"
        "            corrected = mean / (1 - beta1**self.steps)\n"
        "            corrected_square = mean_square / (1 - beta2**self.steps)\n"
        "            weight -= lr * self.weight_decay * weight\n",
        "            gradient = weight.grad + self.weight_decay * weight\n"
        "            mean += (1 - beta1) * (gradient - mean)\n"
        "            mean_square += (1 - beta2) * (gradient**2 - mean_square)\n"
        "            corrected = mean / (1 - beta1**self.steps)\n"
        "            corrected_square = mean_square / (1 - beta2**self.steps)\n",
        "AdamW",
        "added to the gradient (L2)",
    ),
    Planted(13, "        self.steps += 1\n", "", "AdamW", "t is 0"),
    Planted(13, "beta1, beta2 = self.betas", "beta2, beta1 = self.betas", "AdamW", "are exchanged"),
    Planted(13, "step < warmup", "False", "learning_rate"),
    Planted(
        13,
        "    return norm\n",
        "    return min(norm, torch.tensor(max_norm))\n",
        "clip_gradients",
        "expected that before",
    ),
    Planted(13, "corrected_square.sqrt() + self.eps", "(corrected_square + self.eps).sqrt()", "AdamW", "eps"),
    Planted(13, "peak * (step + 1) / warmup", "peak * step / warmup", "learning_rate", "rate 0"),
    Planted(
        13,
        "peak * (total - step) / (total - warmup)",
        "peak * (total - step) / total",
        "learning_rate",
        "begins at step 0",
    ),
    Planted(13, "    model.zero_grad()\n", "", "three training steps", "Gradients of the last step"),
    Planted(13, "    clip_gradients(model.parameters(), max_norm)\n", "", "three training", "not clipped"),
    # --- 14: LoRA
    Planted(14, "nn.init.zeros_(self.lora_B.weight)", "pass", "lora_B.weight", "unchanged before training"),
    Planted(14, "alpha / rank", "alpha", "LoRALinear(linear", "not divided by r"),
    Planted(14, "alpha / rank", "rank / alpha", "LoRALinear(linear", "r / alpha"),
    Planted(
        14,
        "        self.lora_A = nn.Linear(base_layer.in_features, rank, bias=False)\n"
        "        self.lora_B = nn.Linear(rank, base_layer.out_features, bias=False)\n",
        "        self.lora_B = nn.Linear(base_layer.in_features, rank, bias=False)\n"
        "        self.lora_A = nn.Linear(rank, base_layer.out_features, bias=False)\n",
        "lora_A.weight is (5, 3)",
        "A and B are exchanged",
    ),
    Planted(14, "self.scale * self.lora_B.weight @", "self.lora_B.weight @", "merged()", "not scaled"),
    Planted(14, "    model.requires_grad_(False)\n", "", "still True", "base is not frozen"),
    Planted(
        14,
        "            model.set_submodule(name, LoRALinear(layer, rank, alpha))\n",
        "            model.set_submodule(name, LoRALinear(layer, rank, alpha))\n"
        "    model.requires_grad_(False)\n",
        "is False of",
        "frozen after",
    ),
]
