"""Other ways to write steps 13 and 14: edits of a solution after which the step is still done."""

LOSS = "return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())"
CLIP = """    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / norm
    return norm
"""
DECAY = """            weight -= lr * self.weight_decay * weight
            weight -= lr * corrected / (corrected_square.sqrt() + self.eps)
"""
MEANS = """            mean += (1 - beta1) * (weight.grad - mean)
            mean_square += (1 - beta2) * (weight.grad**2 - mean_square)
"""
RATE = """    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (total - step) / (total - warmup)
"""
MERGED = "self.base_layer.weight += self.scale * self.lora_B.weight @ self.lora_A.weight"
UPDATE = "self.scale * self.lora_B(self.lora_A(inputs))"
STYLES = [
    (13, LOSS, "return nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:])"),
    (
        13,
        LOSS,
        "labels = labels[:, 1:]\n    kept = labels != -100\n"
        "    return cross_entropy(logits[:, :-1][kept], labels[kept])",
    ),
    (
        13,
        CLIP,
        "    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()\n"
        "    factor = min(1.0, max_norm / float(norm))\n    for gradient in gradients:\n"
        "        gradient.mul_(factor)\n    return norm\n",
    ),
    (
        13,
        CLIP,
        "    parameters = [torch.nn.Parameter(gradient) for gradient in gradients]\n"
        "    for parameter, gradient in zip(parameters, gradients):\n        parameter.grad = gradient\n"
        "    return torch.nn.utils.clip_grad_norm_(parameters, max_norm)\n",
    ),
    (
        13,
        DECAY,
        "            update = corrected / (corrected_square.sqrt() + self.eps)\n"
        "            weight.mul_(1 - lr * self.weight_decay).sub_(lr * update)\n",
    ),
    (
        13,
        MEANS,
        "            mean.mul_(beta1).add_(weight.grad, alpha=1 - beta1)\n"
        "            mean_square.mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)\n",
    ),
    (
        13,
        RATE,
        "    rising, falling = (step + 1) / warmup, (total - step) / (total - warmup)\n"
        "    return peak * (rising if step < warmup else falling)\n",
    ),
    (
        13,
        "    model.zero_grad()\n",
        "    for parameter in model.parameters():\n        parameter.grad = None\n",
    ),
    (14, UPDATE, "inputs @ self.lora_A.weight.T @ self.lora_B.weight.T * self.scale"),
    (14, UPDATE, "inputs @ (self.scale * self.lora_B.weight @ self.lora_A.weight).T"),
    (
        14,
        "        " + MERGED,
        "        merged = self.base_layer.weight + self.lora_B.weight @ self.lora_A.weight * self.scale\n"
        "        self.base_layer.weight = nn.Parameter(merged)",
    ),
    (
        14,
        "    model.requires_grad_(False)\n",
        "    for parameter in model.parameters():\n        parameter.requires_grad = False\n",
    ),
    (
        14,
        "model.set_submodule(name, LoRALinear(layer, rank, alpha))",
        'parent, _, last = name.rpartition(".")\n'
        "            setattr(model.get_submodule(parent), last, LoRALinear(layer, rank, alpha))",
    ),
]
