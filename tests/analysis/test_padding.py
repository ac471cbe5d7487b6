"""Every analysis of padded rows equals that of the rows without padding, and names an invalid mask."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import ftcore.analysis
from ftcore.analysis import (
    activation_patching,
    attention_maps,
    attention_while_generating,
    beam_trace,
    draw_residual_norms,
    duplicate_token_scores,
    head_ablation,
    hidden_states,
    logit_attribution,
    logit_difference,
    path_patching,
    prefix_matching_scores,
    previous_token_scores,
    residual_norms,
    token_losses,
    top_activations,
)
from ftcore.study import compare_modules, logit_lens
from tests.helpers.oracle import tokens
from tests.helpers.tiny_models import FAMILIES, random_inputs, tiny

PAD = 0
RIGHT, WRONG = torch.tensor([5, 6, 7]), torch.tensor([8, 9, 3])


class Padded:
    """Three rows of equal length with the same number of pads on each side, or none."""

    def __init__(self, family, left=0, right=0, dtype=torch.long):
        self.family, self.left, self.right, self.dtype = family, left, right, dtype
        ids = tokens(7, 3, 4).repeat(1, 2)  # each token twice
        ids[:, 5] = PAD  # as a token too
        self.inputs = self.pad({"input_ids": ids})
        if family == "t5":
            target = tokens(8, 3, 5)
            target[:, 0] = PAD  # the start token
            self.inputs |= {f"decoder_{name}": each for name, each in self.pad({"input_ids": target}).items()}
        self.corrupted = dict(self.inputs)
        self.corrupted["input_ids"] = self.inputs["input_ids"].clone()
        self.corrupted["input_ids"][:, left + 2] += 1
        self.decoder_mask = self.inputs.get(
            "attention_mask" if family == "gpt2" else "decoder_attention_mask"
        )

    def pad(self, inputs):
        (ids,) = inputs.values()
        if not self.left + self.right:
            return inputs
        sides = (self.left, self.right)
        mask = F.pad(torch.ones_like(ids), sides).to(self.dtype)
        return {"input_ids": F.pad(ids, sides, value=PAD), "attention_mask": mask}

    def difference(self):
        mask = {} if self.decoder_mask is None else {"attention_mask": self.decoder_mask}
        return logit_difference(RIGHT, WRONG, **mask)

    def mask(self):
        return [self.inputs[name] for name in ("attention_mask",) if name in self.inputs]

    def crop(self, tensor, dims):
        """Drop padding from the dimensions that `dims` marks as T."""
        for dim, name in enumerate(dims):
            if name == "T":
                tensor = tensor.narrow(dim, self.left, tensor.shape[dim] - self.left - self.right)
        return tensor


def cropped(x, results, dims):
    return {part: x.crop(result, dims) for part, result in results.items()}


def own_maps(model, x):
    return attention_maps(model, x.inputs)["decoder" if x.family == "gpt2" else "encoder"]


def losses(model, x):
    if x.family == "gpt2":
        return token_losses(model, x.inputs)[:, x.left :][:, :7]
    labels = F.pad(tokens(9, 3, 5), (x.left, x.right), value=-100)
    inputs = {name: each for name, each in x.inputs.items() if name != "decoder_input_ids"}
    return x.crop(token_losses(model, inputs, labels), "BT")


def top(model, x):
    part = "" if x.family == "gpt2" else "encoder."
    batches = [{name: each[rows] for name, each in x.inputs.items()} for rows in (slice(2), slice(2, 3))]
    found = top_activations(model, batches, f"{part}resid_post.1", 20)
    return found.values, found.texts, found.positions - x.left


def generated(model, x):
    source = {name: each for name, each in x.inputs.items() if not name.startswith("decoder")}
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": None}
    ids, maps = attention_while_generating(model, *source.values(), **options)
    new = ids[:, -3:]
    if x.family == "gpt2":
        return {"ids": new, "decoder": x.crop(maps["decoder"], "LBHTT")}
    crops = {"encoder": "LBHTT", "decoder": "LBHts", "cross": "LBHtT"}
    return {"ids": new} | {part: x.crop(maps[part], dims) for part, dims in crops.items()}


def trace(model, x):
    source = [each[:1] for name, each in x.inputs.items() if not name.startswith("decoder")]
    found = beam_trace(model, *source, num_beams=3, max_new_tokens=4, pad_token_id=None)
    each = [one for step in found.steps for one in step]
    statuses = [["running", "finished", "displaced", "pruned"].index(one.status) for one in each]
    scores = torch.tensor([one.score for one in each]).round(decimals=3)
    return scores, torch.tensor(statuses), torch.tensor([one.token for one in each])


def patched(model, x):
    prefix = "" if x.family == "gpt2" else "encoder."
    sweep = activation_patching(
        model,
        x.inputs,
        x.corrupted,
        x.difference(),
        f"{prefix}resid_pre.*",
        over=["positions"],
        progress=False,
    )
    return x.crop(sweep.values, "LTB"), x.crop(sweep.restored, "LT")


def paths(model, x):
    names = ("z.*", "resid_post.2") if x.family == "gpt2" else ("cross.z.*", "decoder.resid_post.2")
    sweep = path_patching(model, x.inputs, x.corrupted, x.difference(), *names, progress=False)
    return sweep.values, sweep.restored


def mean_norms(model, x):
    pytest.importorskip("matplotlib")
    masks = {name: each for name, each in x.inputs.items() if name.endswith("mask")}
    figure = draw_residual_norms(residual_norms(model, x.inputs), **masks)
    return [torch.tensor(line.get_ydata()) for axes in figure.axes for line in axes.lines]


def lens(model, x):
    return x.crop(logit_lens(model, **x.inputs), "LBTV")


def compared(model, x):
    """Errors at padding alone."""
    mine = tiny(x.family).double()
    if x.left:
        for part in [mine.transformer] if x.family == "gpt2" else [mine.encoder, mine.decoder]:
            part.register_forward_hook(lambda _, __, output: output.index_fill(1, torch.tensor([0]), 9.0))
    inputs = {name: each for name, each in x.inputs.items() if x.family == "gpt2" or "decoder" not in name}
    if x.family == "t5":
        mine, model = mine.encoder, model.encoder
    return compare_modules(mine, model, inputs, backward=False, where=x.inputs.get("attention_mask")).equal


MAPS = "LBHTT"
CASES = {
    "attention_maps": lambda model, x: cropped(x, attention_maps(model, x.inputs), MAPS),
    "attention_while_generating": generated,
    "hidden_states": lambda model, x: cropped(x, hidden_states(model, x.inputs), "LBTD"),
    "residual_norms": lambda model, x: cropped(x, residual_norms(model, x.inputs), "LBT"),
    "draw_residual_norms": mean_norms,
    "logit_attribution": lambda model, x: [
        x.crop(share, "LHBT"[-share.dim() :])
        for share in logit_attribution(model, x.inputs, RIGHT[:, None], WRONG[:, None]).values()
    ],
    "token_losses": losses,
    "top_activations": top,
    "beam_trace": trace,
    "logit_difference": patched,
    "activation_patching": patched,
    "path_patching": paths,
    "head_ablation": lambda model, x: [
        head_ablation(model, x.inputs, x.difference(), mean=mean, progress=False) for mean in (False, True)
    ],
    "previous_token_scores": lambda model, x: previous_token_scores(own_maps(model, x), *x.mask()),
    "prefix_matching_scores": lambda model, x: prefix_matching_scores(
        own_maps(model, x), x.inputs["input_ids"], *x.mask()
    ),
    "duplicate_token_scores": lambda model, x: duplicate_token_scores(
        own_maps(model, x), x.inputs["input_ids"], *x.mask()
    ),
    "logit_lens": lens,
    "compare_modules": compared,
}
# Of weights, of generated inputs, of one text, or of results.
WITHOUT_PADDING = {"copy_scores", "relative_bias_curves", "induction_scores", "inputs_of", "token_names"}
WITHOUT_PADDING |= {"save_figure"}


def test_every_public_function_has_a_case():
    public = {name for name, each in vars(ftcore.analysis).items() if inspect.isfunction(each)}
    drawings = {name for name in public if name.startswith("draw_")}
    assert public - drawings - WITHOUT_PADDING - CASES.keys() == set()


@pytest.mark.parametrize(
    ("left", "right", "dtype"), [(3, 0, torch.long), (0, 2, torch.bool), (2, 3, torch.float32)]
)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_padded_rows_equal_rows_alone(name, family, left, right, dtype):
    if family == "gpt2" and right and name in ("attention_while_generating", "beam_trace"):
        pytest.skip("GPT-2 continues its last position")
    model = tiny(family).double()
    want = CASES[name](model, Padded(family))
    got = CASES[name](model, Padded(family, left, right, dtype))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", sorted(CASES.keys() - {"beam_trace", "attention_while_generating"}))
def test_a_mask_of_another_shape_is_refused(name, family):
    model, x = tiny(family), Padded(family, 1, 1)
    x.inputs["attention_mask"] = x.inputs["attention_mask"][:1]
    x.decoder_mask = None if x.decoder_mask is None else x.decoder_mask[:1]
    with pytest.raises(ValueError, match=r"attention_mask|where"):
        CASES[name](model, x)


def test_scores_of_rows_of_different_lengths_are_means_over_positions():
    model, lengths = tiny("gpt2").double(), (8, 5, 7)
    rows = [tokens(seed, 1, 3).repeat(1, 3)[:, :length] for seed, length in enumerate(lengths)]
    ids = torch.cat([F.pad(row, (8 - row.shape[1], 0), value=PAD) for row in rows])
    mask = torch.arange(8) >= 8 - torch.tensor(lengths)[:, None]
    maps = attention_maps(model, {"input_ids": ids, "attention_mask": mask})["decoder"]
    alone = [attention_maps(model, {"input_ids": row})["decoder"] for row in rows]
    for score, first in (
        (lambda maps, ids, *mask: previous_token_scores(maps, *mask), 1),
        (prefix_matching_scores, 3),
        (duplicate_token_scores, 3),
    ):
        counts, pairs = [length - first for length in lengths], zip(alone, rows, strict=True)
        want = sum(count * score(*each) for count, each in zip(counts, pairs, strict=True))
        torch.testing.assert_close(score(maps, ids, mask), want / sum(counts))


def test_maps_of_generation_leave_out_the_pads_that_generate_leaves_out():
    model, ids = tiny("gpt2").double(), tokens(1, 2, 6)
    padded = F.pad(ids, (3, 0), value=PAD)
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": PAD}
    answers, maps = attention_while_generating(model, padded, **options)
    alone, want = attention_while_generating(model, ids, **options)
    assert torch.equal(answers[:, 3:], alone)
    torch.testing.assert_close(maps["decoder"][..., 3:, 3:], want["decoder"])


def test_positions_of_a_metric_count_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    logits = torch.arange(2 * 5 * 10.0).view(2, 5, 10).square()
    right, wrong = torch.tensor([1, 2]), torch.tensor([4])
    for position, columns in ((0, (2, 0)), (-1, (4, 3)), (2, (4, 2)), (-3, (2, 1))):
        got = logit_difference(right, wrong, position, mask)(logits)
        assert got.tolist() == [
            (logits[row, column, right[row]] - logits[row, column, 4]).item()
            for row, column in enumerate(columns)
        ]
    with pytest.raises(ValueError, match="position is 3, expected a whole number from -3 to 2"):
        logit_difference(right, wrong, 3, mask)(logits)


def test_patching_of_different_padding_is_refused():
    inputs = random_inputs("gpt2") | {"attention_mask": torch.ones(2, 7)}
    other = inputs | {"attention_mask": torch.tensor([[0] + [1] * 6, [1] * 7])}
    with pytest.raises(ValueError, match="differ in attention_mask"):
        activation_patching(tiny("gpt2"), inputs, other, lambda logits: logits.mean(), "resid_pre.*")


def test_a_mask_for_each_query_reaches_the_model():
    """As in packed rows: two texts of three tokens."""
    ids, block = tokens(3, 1, 6), torch.ones(3, 3).tril()
    packed = {"input_ids": ids, "attention_mask": torch.block_diag(block, block)[None]}
    packed["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2]])
    maps = attention_maps(tiny("gpt2"), packed)["decoder"]
    alone = attention_maps(tiny("gpt2"), {"input_ids": ids.view(2, 3)})["decoder"]
    torch.testing.assert_close(maps[:, :, :, 3:, 3:], alone[:, 1:])
    with pytest.raises(ValueError, match="attention_mask is"):
        token_losses(tiny("gpt2"), packed)
