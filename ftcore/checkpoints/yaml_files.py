"""YAML files of options, read by PyYAML where it is installed.

Unquoted values mean what they mean in JSON, and numbers may be written as 1e-3 or .5. PyYAML by itself reads
YAML 1.1, where 1e-3 is a text, no is false and 1:30 is 90. Anchors, with which a few lines become gigabytes,
and tags, which name Python objects, are errors.
"""

import re
from pathlib import Path
from reprlib import repr as shown
from typing import Any

from ftcore.checkpoints.files import read_text

# Characters and brackets. PyYAML takes a second for either, and more than a minute for 40,000 brackets.
MAX_LENGTH, MAX_BRACKETS = 50_000, 1000

_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER, _NUMBER = r"[-+]?[0-9]+", r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?"


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        FileNotFoundError, ValueError: see `read_text`; PyYAML is missing; MAX_LENGTH or MAX_BRACKETS is
            exceeded; broken YAML, an anchor, a tag, a key twice or no mapping. Names file and line.
    """
    text = read_text(path)
    if len(text) > MAX_LENGTH or text.count("[") + text.count("{") > MAX_BRACKETS:
        raise ValueError(f"{path}: more than {MAX_LENGTH:,} characters or {MAX_BRACKETS:,} brackets")
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError(f"{path}: YAML is read by PyYAML, which is missing: pip install pyyaml") from None
    try:
        for event in yaml.parse(text, yaml.BaseLoader):
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise _error("anchors, aliases and tags (&, *, !) are not read", event.start_mark)
        root = yaml.compose(text, yaml.BaseLoader)
        values = _value(root) if root else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise ValueError(f"{path}, line {line}: broken YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # characters, integers of 5000 digits
        raise ValueError(f"{path}: broken YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ValueError(f"{path}: broken YAML: too many levels of nesting") from None
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected lines such as "lr: 1e-3", found {type(values).__name__}')
    return values


def _error(problem: str, mark: Any) -> Exception:
    import yaml

    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _value(node: Any) -> Any:
    """The value of a node of PyYAML without anchors and tags."""
    if isinstance(node.value, str):
        node.value.encode()  # an escape may be half of a surrogate pair
        return _plain(node.value) if node.style is None else node.value
    if node.tag.endswith("seq"):
        return [_value(item) for item in node.value]
    values: dict[str, Any] = {}
    for key, item in node.value:
        if not isinstance(key.value, str):
            raise _error("a key that is not a text", key.start_mark)
        if key.value in values:
            raise _error(f"key {shown(key.value)} twice", key.start_mark)
        values[key.value] = _value(item)
    return values


def _plain(text: str) -> Any:
    """The value of an unquoted text."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if re.fullmatch(_INTEGER, text):
        return int(text)
    return float(text) if re.fullmatch(_NUMBER, text) else text
