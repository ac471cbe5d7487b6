"""Planted mistakes of steps 11 and 12."""

from tests.helpers.course_checks import Planted

MISTAKES = [
    # --- 11: the key-value cache
    Planted(
        11,
        "positions = torch.arange(past, past + new_ids.shape[1])",
        "positions = torch.arange(new_ids.shape[1])",
        "with 7 in the cache",
        "start at 0",
    ),
    Planted(11, "[-hidden.shape[1] :]", "[: hidden.shape[1]]", "with 7 in the cache", "first rows"),
    Planted(
        11,
        "visible = causal_mask(key.shape[2])",
        "visible = torch.ones(key.shape[2], key.shape[2]).bool()",
        "with 0 in the cache",
        "causal mask is missing",
    ),
    Planted(11, "        cache[layer] = (key, value)\n", "", "with 8 in the cache"),
    Planted(
        11,
        "        past_key, past_value = cache[layer]\n        key = torch.cat([past_key, key], dim=2)\n"
        "        value = torch.cat([past_value, value], dim=2)\n        cache[layer] = (key, value)\n",
        "        past_key, past_value = cache[layer]\n        cache[layer] = (key, value)\n"
        "        key = torch.cat([past_key, key], dim=2)\n"
        "        value = torch.cat([past_value, value], dim=2)\n",
        "with 8 in the cache",
        "keeps the last call's",
    ),
    Planted(
        11,
        "torch.cat([past_key, key], dim=2)\n        value = torch.cat([past_value, value], dim=2)",
        "torch.cat([key, past_key], dim=2)\n        value = torch.cat([value, past_value], dim=2)",
        "with 8 in the cache",
        "before those in the cache",
    ),
    Planted(
        11,
        "        fed = new_ids[-1:] or ids\n",
        "        fed = [*ids, *new_ids]\n",
        "write(model",
        "All tokens are fed again",
    ),
    Planted(
        11,
        "        fed = new_ids[-1:] or ids\n",
        "        fed, cache = [*ids, *new_ids], []\n",
        "computes 63 positions",
        "computed again",
    ),
    Planted(
        11,
        "    cache: Cache = []\n",
        "    cache: Cache = []\n    cached_logits(model, torch.tensor([ids]), heads, cache)\n"
        "    ids = ids[-1:]\n",
        "write(model",
        "fed twice",
    ),
    Planted(11, "or ids\n", "or ids[:-1]\n", "write(model", "is not fed"),
    # --- 12: greedy search, beam search
    Planted(12, "len(new) < most", "len(new) < most - 1", "greedy_search", "a token too short"),
    Planted(12, " and end not in new", "", "greedy_search", "goes on after"),
    Planted(
        12,
        "    return new\n",
        "    return new[:-1] if end in new else new\n",
        "greedy_search",
        "is not returned",
    ),
    Planted(12, "scores[:, None] + log_p", "log_p", "beam_search", "expected the sum of all"),
    Planted(
        12,
        "        candidates = scores[:, None] + log_p\n",
        "        if length == 1:\n            each, length_penalty = length_penalty, 0.0\n"
        "        candidates = (scores[:, None] + log_p) / length**each\n",
        "beam_search",
        "at each step",
    ),
    Planted(12, "goes_on = token != end", "goes_on = token != -1", "beam_search", "stays a beam"),
    Planted(
        12,
        "            if token[rank] == end:\n",
        "            if False:\n",
        "beam_search",
        "are lost",
    ),
    Planted(
        12, "for rank in range(beams)", "for rank in range(2 * beams)", "beam_search", "among the first N"
    ),
    Planted(12, ".log_softmax(dim=-1)", "", "beam_search", "logits are summed"),
    Planted(12, ".log_softmax(dim=-1)", ".softmax(dim=-1)", "beam_search", "p is summed"),
    Planted(
        12,
        "complete.append((float(best[rank]) / length**length_penalty, ",
        "complete.append((float(best[rank]), ",
        "beam_search(logits",
    ),
]
