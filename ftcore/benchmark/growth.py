"""How the cost grows: the same work with more of one thing at a time."""

from ftcore.benchmark.cases import Case

MODELS = ["gpt2", "gpt2-medium", "gpt2-large"]

AXES = {  # of which more is taken, and how a picture calls it
    "source": "tokens of the input (one new token)",
    "rows": "rows (16 tokens in, 32 out)",
    "beams": "beams (16 tokens in, 32 out)",
    "model": "parameters (16 tokens in, 32 out)",
}


def growth_cases(*, is_first: bool) -> list[Case]:
    """All axes for the first model; of the others one point, so that together they are the last axis."""
    plain = Case("model", "generate", source=16, target=32, axis="model")
    if not is_first:
        return [plain]
    lengths = [
        Case(f"source-{n}", "generate", source=n, target=1, axis="source") for n in (32, 128, 512, 1023)
    ]
    rows = [
        Case(f"rows-{n}", "generate", rows=n, source=16, target=32, axis="rows") for n in (1, 2, 4, 8, 16)
    ]
    beams = [
        Case(f"beams-{n}", "generate", beams=n, source=16, target=32, axis="beams") for n in (1, 2, 4, 8)
    ]
    return [*lengths, *rows, *beams, plain]
