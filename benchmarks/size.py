"""How big the package is: lines, modules, import circles, long functions, wide data classes, imports of an estimate.

Usage: python benchmarks/size.py [--list]          (needs radon and grimp: pip install --group bench)

With --list, the names of what exceeds a limit. Lines of code and complexity are radon's, imports grimp's.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
from radon.complexity import cc_visit
from radon.raw import analyze
from radon.visitors import Function
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

SOURCE = Path(__file__).parents[1] / "src" / "infergy"
MOST_LINES, MOST_COMPLEXITY, MOST_FIELDS, MODULE_LINES = 50, 12, 12, 400


def import_circles() -> list[list[str]]:
    """Groups of modules that import one another, imports inside functions included, those for types not."""
    graph = grimp.build_graph("infergy", exclude_type_checking_imports=True, cache_dir=None)
    names = sorted(graph.modules)
    number = {name: index for index, name in enumerate(names)}
    edges = [(number[name], number[other]) for name in names for other in graph.find_modules_directly_imported_by(name)]
    rows, columns = zip(*edges, strict=True)
    size = len(names)
    _, label = connected_components(
        csr_array(([1] * len(edges), (rows, columns)), shape=(size, size)), connection="strong"
    )
    groups: dict[int, list[str]] = {}
    for name, group in zip(names, label, strict=True):
        groups.setdefault(int(group), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, lines and complexity of each function and method of a file."""
    for block in cc_visit(path.read_text(encoding="utf-8")):
        if isinstance(block, Function):
            yield f"{path.relative_to(SOURCE)}:{block.fullname}", block.endline - block.lineno + 1, block.complexity


def wide_classes(path: Path) -> Iterator[tuple[str, int]]:
    """Classes of more than `MOST_FIELDS` annotated fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = sum(isinstance(part, ast.AnnAssign) for part in node.body)
            if fields > MOST_FIELDS:
                yield f"{path.relative_to(SOURCE)}:{node.name}", fields


def modules_of_an_estimate() -> int:
    """Modules of infergy that ``infergy.estimate`` of a shipped trace leaves in `sys.modules`."""
    code = (
        "import sys, infergy; infergy.estimate('azure-conv-2023'); "
        "print(sum(name.partition('.')[0] == 'infergy' for name in sys.modules))"
    )
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Print each figure beside its limit."""
    paths = sorted(SOURCE.rglob("*.py"))
    raw = {path: analyze(path.read_text(encoding="utf-8")) for path in paths}
    circles = import_circles()
    blocks = [block for path in paths for block in functions(path)]
    wide = [found for path in paths for found in wide_classes(path)]
    long_functions = [f"{name} ({lines})" for name, lines, _ in blocks if lines > MOST_LINES]
    branched = [f"{name} ({complexity})" for name, _, complexity in blocks if complexity > MOST_COMPLEXITY]
    long_modules = [f"{path.relative_to(SOURCE)} ({one.loc})" for path, one in raw.items() if one.loc > MODULE_LINES]
    figures: list[tuple[str, int, int | None, list[str]]] = [
        ("source lines of code (radon SLOC)", sum(one.sloc for one in raw.values()), 16_500, []),
        ("lines", sum(one.loc for one in raw.values()), 25_000, []),
        ("modules", len(paths), 170, []),
        ("infergy.* modules after an estimate", modules_of_an_estimate(), 35, []),
        ("import circles", len(circles), 0, [" ".join(group) for group in circles]),
        (f"functions of more than {MOST_LINES} lines", len(long_functions), 10, long_functions),
        (f"functions of complexity above {MOST_COMPLEXITY}", len(branched), 10, branched),
        (f"classes of more than {MOST_FIELDS} fields", len(wide), 0, [f"{name} ({count})" for name, count in wide]),
        (f"modules of more than {MODULE_LINES} lines", len(long_modules), 0, long_modules),
    ]
    for name, value, limit, names in figures:
        print(f"{name:<40} {value:>7,}  limit {limit:>7,}")
        if "--list" in sys.argv:
            for entry in names:
                print(f"    {entry}")


if __name__ == "__main__":
    main()
