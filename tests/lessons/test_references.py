"""What the checks compute by hand, to name mistakes, equals torch and ftcore without a mistake."""

import pytest
import torch
from torch import nn

from ftcore.decoding import generate
from ftcore.lessons import generation_steps, training_steps
from ftcore.training import optim


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", [{}, {"betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.3}])
def test_adamw_equals_torchs(options, seed):
    torch.manual_seed(seed)
    weights = torch.randn(7)
    theirs = nn.Parameter(weights.clone())
    mine, optimizer = training_steps.AdamW(**options), torch.optim.AdamW([theirs], **options)
    for lr in (0.1, 0.3, 0.02, 0.1):
        theirs.grad = torch.randn(7)
        weights = mine.step(weights, theirs.grad, lr)
        optim.set_learning_rate(optimizer, lr)
        optimizer.step()
    torch.testing.assert_close(weights, theirs.detach())


@torch.no_grad()
def test_logits_by_hand_equal_the_models():
    model = generation_steps.reference_model()
    ids = torch.randint(generation_steps.VOCABULARY, (2, 9))
    torch.testing.assert_close(generation_steps._logits_with(model, ids, 4), model(ids)[:, 4:])


@torch.no_grad()
@pytest.mark.parametrize("seed", range(20))
def test_beam_search_by_hand_equals_generate(seed):
    torch.manual_seed(seed)
    model = generation_steps.reference_model(seed, layers=1)
    ids = generation_steps.random_ids(1 + seed % 3)
    most, beams, penalty = 1 + seed % 7, 2 + seed % 4, (0.0, 1.0, 2.5)[seed % 3]
    for end in generation_steps.greedy(model, ids, 4):
        found = generate(
            model,
            torch.tensor([ids]),
            max_new_tokens=most,
            eos_token_id=end,
            num_beams=beams,
            length_penalty=penalty,
            early_stopping="never",
        )
        got = generation_steps._beam_search_with(model, ids, most, end, beams, penalty)
        assert ids + got == found[0].tolist()
