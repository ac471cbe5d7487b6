"""Templates: text with placeholders, "summarize: {document}". Literal braces are doubled, as in Python."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from reprlib import repr as shown
from string import Formatter

_NAME = re.compile(r"[^\W\d][\w -]*")


@dataclass(frozen=True)
class Template:
    """A parsed template: literals[0], {names[0]}, literals[1], ... , literals[-1]."""

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with these values in place of the placeholders."""
        pairs = zip(self.literals, (*self.names, None), strict=True)
        return "".join(literal + (values[name] if name is not None else "") for literal, name in pairs)

    def read(self, text: str) -> dict[str, str] | None:
        """Values that give this text; None if there are none. The inverse of `fill`."""
        if not text.startswith(self.literals[0]):
            return None
        values, rest = {}, text.removeprefix(self.literals[0]) + "\0"  # NUL: the end of the text
        for name, literal in zip(self.names, (*self.literals[1:-1], self.literals[-1] + "\0"), strict=True):
            values[name], _, rest = rest.partition(literal) if literal else ("", "", rest)
        return values if self.fill(values) == text else None


@lru_cache
def parse_template(text: str, argument: str = "template") -> Template:
    """Check the braces of a template and find its placeholders.

    Args:
        argument: its name in an error.

    Raises:
        ValueError: unbalanced braces, no placeholder, or more than a name in braces: no attributes, indices,
            conversions or formats.
    """
    literals, names = [""], []
    try:
        for literal, name, form, conversion in Formatter().parse(text):
            literals[-1] += literal
            if name is None:
                continue
            if form or conversion or not _NAME.fullmatch(name):
                raise ValueError(f"{{{shown(name)[1:-1]}}} is not the name of a column")
            names.append(name)
            literals.append("")
        if not names:
            raise ValueError("it has no placeholder, such as {text}")
    except ValueError as error:
        advice = "write {column} for a column's text, and double other braces"
        raise ValueError(f"`{argument}` is {shown(text)}: {error}; {advice}") from None
    return Template(tuple(literals), tuple(names))
