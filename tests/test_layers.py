"""Imports point one way: each package imports from lower layers only, and those of one layer never each other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import blocksparse_rnn

PACKAGE = Path(blocksparse_rnn.__file__).parent
LAYERS = [
    {"errors", "files", "signals", "distributed", "processes"},
    {"speech", "models", "pruning"},
    {"data", "runtime"},
    {"runs"},
    {"config"},
    {"training"},
    {"sweep", "inference", "report"},
    {"cli"},
]
ROOT = LAYERS[0]


def imported(file: Path) -> Iterator[str]:
    """Modules of this package that a file imports, by their names below it, wherever in the file it does."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: name the package in imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".", 1)[1] for name in names if name.startswith("blocksparse_rnn."))


def test_imports_point_downwards():
    layer_of = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    upward = []
    for file in sorted(PACKAGE.rglob("*.py")):
        part = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in {name.split(".")[0] for name in imported(file)} - {part}:
            if layer_of[other] >= layer_of[part] and not {part, other} <= ROOT:
                upward.append(f"{file.relative_to(PACKAGE)} imports {other}")
    assert not upward


def test_there_are_no_circles():
    modules = {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    imports = {
        name: {
            known
            for other in imported(file)
            for known in (other, other.rpartition(".")[0])
            if known in modules
        }
        for name, file in modules.items()
    }
    while leaves := {name for name, others in imports.items() if not others & imports.keys()}:
        imports = {name: others for name, others in imports.items() if name not in leaves}
    assert not imports, f"circles among {sorted(imports)}"
