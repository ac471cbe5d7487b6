"""Templates: what is filled in can be read again, and only names of columns are placeholders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftcore.data.templates import parse_template

LITERALS = st.lists(st.text("ab: {}\n", max_size=6), min_size=2, max_size=4)


@given(literals=LITERALS, values=st.lists(st.text("ab: {}\n"), min_size=3, max_size=3))
def test_a_filled_template_is_its_text_and_can_be_read(literals: list[str], values: list[str]) -> None:
    escaped = [literal.replace("{", "{{").replace("}", "}}") for literal in literals]
    names = [f"column {number}" for number in range(len(literals) - 1)]
    text = (
        "".join(f"{literal}{{{name}}}" for literal, name in zip(escaped, names, strict=False)) + escaped[-1]
    )
    template = parse_template(text)
    assert (template.literals, template.names) == (tuple(literals), tuple(names))
    filled = template.fill(dict(zip(names, values, strict=False)))
    pairs = zip(literals, [*values[: len(names)], ""], strict=True)
    assert filled == "".join(literal + value for literal, value in pairs)
    read = template.read(filled)
    assert read is None or template.fill(read) == filled
    assert read is not None or len(names) > 1  # ambiguous only between two placeholders


def test_values_are_read_back() -> None:
    template = parse_template("question: {question} context: {context}")
    assert template.read("question: Who? context: Ada.\n") == {"question": "Who?", "context": "Ada.\n"}
    assert template.read("Who?") is None
    assert template.read("question: Who?") is None
    assert parse_template("{a}{a}!").read("xx!") is None


@pytest.mark.parametrize(
    "text",
    [
        "{a.__class__}",
        "{a[0]}",
        "{0}",
        "{}",
        "{a!r}",
        "{a:>9}",
        "{a:{b}}",
        "{a",
        "a}",
        "{ a}",
        "none",
        "",
        "{{}}",
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^`template` is .*write \{column\}[^\n]*$"):
        parse_template(text)
