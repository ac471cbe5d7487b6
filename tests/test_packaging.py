"""The wheel, the source archive and their metadata: complete, consistent, without what only a clone has."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ftcore"
DESCRIPTION = ROOT / "docs" / "package.md"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def setup_cfg() -> ConfigParser:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def package_name(requirement: str) -> str:
    """ "mkdocstrings[python]>=0.26" -> "mkdocstrings"; spelled as package indexes compare names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0].lower())


def requirements() -> dict[str, set[str]]:
    """Package names by extra; those of the core under ""."""
    config = setup_cfg()
    lists = {"": config["options"]["install_requires"], **config["options.extras_require"]}
    return {extra: {package_name(line) for line in text.split("\n") if line} for extra, text in lists.items()}


def pins() -> dict[str, str]:
    """Versions of constraints.txt by package name, those for the newest Python."""
    found = re.findall(r"^([\w.-]+)==([^;\s]+)(?!.*python_version <)", read("constraints.txt"), re.M)
    return {package_name(name): version for name, version in found}


def test_every_requirement_is_pinned():
    needed = set().union(*requirements().values())
    assert needed - pins().keys() == set()


def test_every_hint_names_a_package_of_an_extra():
    extras = set().union(*requirements().values())
    hints = {
        package_name(hint)
        for path in [*PACKAGE.rglob("*.py"), DESCRIPTION]
        for hint in re.findall(r"pip install ([A-Za-z][\w.-]*\w)", path.read_text(encoding="utf-8"))
    }
    assert {"matplotlib", "optuna", "huggingface-hub", "transformers"} <= hints
    assert hints - extras == set()


def test_the_extras_that_documents_name_exist():
    documents = [path for folder in (".", "docs", "examples") for path in (ROOT / folder).glob("*.md")]
    named = {
        extra
        for path in documents
        for extras in re.findall(r"(?:\.|ftcore)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        for extra in extras.split(",")
    }
    assert {"hub", "plot", "test"} <= named <= requirements().keys()


def test_python_versions_agree():
    config = setup_cfg()
    classifiers = re.findall(r"Python :: (3\.\d+)$", config["metadata"]["classifiers"], re.M)
    assert config["options"]["python_requires"] == f">={classifiers[0]}"
    assert [int(version[2:]) for version in classifiers] == list(range(10, 10 + len(classifiers)))
    (matrix,) = re.findall(r"python: \[(.*)\]", read(".github/workflows/test.yml"))
    assert re.findall(r'"(.*?)"', matrix) == classifiers


def test_pre_commit_uses_the_pinned_versions():
    text = read(".pre-commit-config.yaml")
    versions = dict(re.findall(r"(ruff|mypy)(?:-pre-commit)?\n +rev: v(\S+)", text))
    assert versions == {name: pins()[name] for name in ("ruff", "mypy")}
    assert re.findall(r"(numpy|torch)==([^\s\"',\]]+)", text) == [
        (name, pins()[name]) for name in ("numpy", "torch")
    ]


def test_files_for_other_services_have_what_they_must():
    needed = {
        "CITATION.cff": {"cff-version", "message", "title", "authors"},
        ".pre-commit-config.yaml": {"repos"},
        ".github/workflows/test.yml": {"name", "jobs"},
        ".github/ISSUE_TEMPLATE/bug.yml": {"name", "description", "body"},
        ".github/ISSUE_TEMPLATE/idea.yml": {"name", "description", "body"},
    }
    for name, keys in needed.items():
        assert keys <= yaml.safe_load(read(name)).keys(), name


def test_citation_has_the_version_of_the_package():
    (version,) = re.findall(r'^__version__ = "(.*)"$', read("ftcore/__init__.py"), re.M)
    assert re.findall(r"^version: (.*)$", read("CITATION.cff"), re.M) == [version]


def test_the_description_has_no_relative_links():
    assert setup_cfg()["metadata"]["long_description"] == "file: docs/package.md"
    assert re.findall(r"\]\((?!\w+:)|src=|href=", DESCRIPTION.read_text(encoding="utf-8")) == []


# ------------------------------------------------------------------------------------------- what is built


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Iterator[tuple[set[str], set[str]]]:
    """File names of the wheel and of the source archive, built from a copy of the project."""
    directory = tmp_path_factory.mktemp("project")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "data", "*.safetensors", ".*")
    for name in ("ftcore", "tests", "docs", "examples"):
        shutil.copytree(ROOT / name, directory / name, ignore=None if name == "ftcore" else ignored)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, directory)
    code = "import setuptools.build_meta as b; print(b.build_wheel('dist')); print(b.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = (list((directory / "dist").glob(f"*.{end}")) for end in ("whl", "tar.gz"))
    with zipfile.ZipFile(wheel) as opened, tarfile.open(sdist) as unpacked:
        yield set(opened.namelist()), {name.partition("/")[2] for name in unpacked.getnames()}


def package_files() -> set[str]:
    """Every file of the package, but for the settings of a linter."""
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(ROOT).as_posix() for path in files if path.name != "ruff.toml"}


def test_the_wheel_holds_the_package_alone(archives):
    wheel, _ = archives
    assert {name for name in wheel if ".dist-info/" not in name} == package_files()


def test_the_source_archive_holds_no_tests_and_what_a_build_needs(archives):
    _, sdist = archives
    assert package_files() <= sdist
    assert {"LICENSE", "CHANGELOG.md", "CITATION.cff", "docs/package.md", "setup.cfg"} <= sdist
    assert {name for name in sdist if name.startswith(("tests", "examples", "README"))} == set()
