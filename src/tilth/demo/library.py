"""Raw text that is on every machine with Python: the standard library's source, and its docstrings as prose."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_LEFT_OUT = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "__pycache__",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "_pyrepl",
}


def documents(root: Path | None = None, characters: int = 6_000_000) -> Iterator[dict[str, Any]]:
    """Each module as one document of kind 'code', its docstrings together as one of kind 'prose', up to `characters` in all."""
    root = root or Path(sysconfig.get_path("stdlib"))
    total = 0
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT.intersection(name.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        prose = "\n\n".join(_docstrings(text))
        for kind, content in (("code", text), ("prose", prose)):
            if content:
                total += len(content)
                yield {"id": f"{kind}/{name.as_posix()}", "kind": kind, "text": content}
        if total >= characters:
            return


def _docstrings(text: str) -> Iterator[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError:  # the library keeps broken files for its own tests
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            docstring = ast.get_docstring(node)
            if docstring and len(docstring) > 60:
                yield docstring


def write_library(path: Path, characters: int = 6_000_000) -> Path:
    """The documents as a Parquet file."""
    pq.write_table(pa.Table.from_pylist(list(documents(characters=characters))), path)
    return path
