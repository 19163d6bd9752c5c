"""Notebooks written for somebody: a chart or a query of the screen, as cells that read the store and show it again.

A recipe (`recipes`) is a function whose body becomes those cells: what it reads, and last what it shows. They go
to <home>/notebooks/, where a JupyterLab of this home (`make lab`) finds them.
"""

import ast
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any
from urllib.parse import quote

import psutil

from workbench.rundir import home as current_home
from workbench.rundir import write_json

Cell = tuple[str, str]
"""("markdown" or "code", source)."""
COMPANIONS = Path(__file__).parents[1] / "notebooks"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,149}")


def write(home: Path, name: str, cells: Sequence[Cell]) -> Path:
    """Put a notebook into <home>/notebooks and return its path.

    One of that name with the same cells is left as it is, with its outputs. One with other cells, which somebody may
    have edited, is left too: the new one is called <name>-2, <name>-3, ...

    Raises:
        ValueError: a name that is none, such as a path.
    """
    if not NAME.fullmatch(name):
        raise ValueError(
            f"a notebook's name has 1 to 150 of the characters a-z A-Z 0-9 _ . - and begins with a letter or digit, "
            f"got {name!r}; leave out the others"
        )
    number = 1
    while True:
        path = home / "notebooks" / f"{name}{f'-{number}' if number > 1 else ''}.ipynb"
        if not path.exists():
            write_json(path, _document(cells))
            return path
        if _cells(path) == list(cells):
            return path
        number += 1


def _document(cells: Sequence[Cell]) -> dict[str, Any]:
    """A notebook in nbformat 4.5."""
    rows = []
    for number, (kind, source) in enumerate(cells):
        row = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        rows.append(row | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": rows, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _cells(path: Path) -> list[Cell] | None:
    """The cells of a notebook; None where the file is none."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [(row["cell_type"], "".join(row["source"])) for row in rows]
    except (ValueError, KeyError, TypeError):
        return None


def of_recipe(home: Path, recipe: Callable[..., Any], parameters: Mapping[str, Any]) -> list[Cell]:
    """A recipe's docstring, imports with its parameters, what it reads, and what it shows, each a cell.

    parameters: all but `home` and `db`, as plain values.
    """
    source = inspect.getsource(recipe)
    lines, function = source.splitlines(), ast.parse(source).body[0]
    _, *reads, shows = function.body  # the first is the docstring
    names = {node.id for part in (*reads, shows) for node in ast.walk(part) if isinstance(node, ast.Name)}
    opening = [
        "import os\n",
        *_imports(inspect.getmodule(recipe), names | {"rundir"}),
        f'\nos.environ["WORKBENCH_HOME"] = {_written(str(home))}',
        "home = rundir.home()",
        "db = rundir.store_path(home)",
        *(f"{name} = {_written(value)}" for name, value in parameters.items()),
    ]
    body = _apart(lines[reads[0].lineno - 1 : shows.lineno - 1]) if reads else None
    last = _apart(lines[shows.lineno - 1 : shows.end_lineno]).removeprefix("return ")
    title = f"# {inspect.getdoc(recipe)}\n\nAs the workbench's screen drew it; run the cells to have it anew."
    return [("markdown", title), ("code", "\n".join(opening)), *([("code", body)] if body else []), ("code", last)]


def _apart(lines: Sequence[str]) -> str:
    """Lines of a function as they stand outside of it."""
    return dedent("\n".join(lines)).strip()


def _imports(module: ModuleType, names: set[str]) -> list[str]:
    """The lines by which a module imports those names."""
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [alias for alias in node.names if (alias.asname or alias.name) in names]
            found += [ast.unparse(node)] if node.names else []
    return found


def _written(value: Any) -> str:
    """A plain value as Python; a text of several lines stays readable."""
    plain = repr(value)
    if isinstance(value, str) and "\n" in value and not re.search(r'["\\\r]', value):
        plain = f'"""{value}"""'
    assert ast.literal_eval(plain) == value, f"not a plain value: {plain}"
    return plain


def address(path: Path) -> str | None:
    """Where a running JupyterLab shows a file, or None. Without its token: the browser that it opened is let in."""
    if find_spec("jupyter_core") is None:
        return None
    from jupyter_core.paths import jupyter_runtime_dir  # of the extra `notebooks`

    for file in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        server = json.loads(file.read_text(encoding="utf-8"))
        root = Path(server["root_dir"]).resolve()
        if psutil.pid_exists(server["pid"]) and path.resolve().is_relative_to(root):
            return f"{server['url']}lab/tree/{quote(path.resolve().relative_to(root).as_posix())}"
    return None


def lab_command(home: Path, port: int) -> list[str]:
    """What starts a JupyterLab over the companion notebooks and the home's, which this machine alone can reach."""
    return [
        sys.executable, "-m", "jupyterlab", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
        f"--ServerApp.root_dir={os.path.commonpath([COMPANIONS, home])}",
        f"--FileContentsManager.preferred_dir={COMPANIONS}", "--ContentsManager.allow_hidden=True",
        *(["--allow-root"] if os.geteuid() == 0 else []),
    ]  # fmt: skip


def main() -> None:
    """Become JupyterLab (`make lab`)."""
    home = current_home()
    (home / "notebooks").mkdir(parents=True, exist_ok=True)
    command = lab_command(home, int(os.environ.get("LAB_PORT", "8888")))
    os.execve(command[0], command, os.environ | {"WORKBENCH_HOME": str(home)})


if __name__ == "__main__":
    main()
