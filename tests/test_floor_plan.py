"""Who may import whom, and which folders are packages: read from the sources with `ast`."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPTIONAL = {"matplotlib", "numba_cuda", "pandas", "sklearn"}
ENGINES = ("fastbp.kernels.cpu", "fastbp.kernels.cuda")
SHARED = {
    f"fastbp.kernels.{name}"
    for name in ("activations", "digest", "elementary", "losses", "optimizers", "problem", "random")
}


def find_modules() -> dict[str, Path]:
    """Every module of the source tree by its dotted name; rglob does not follow the symlink fastbp/kernels."""
    modules = {}
    for path in [*(ROOT / "fastbp").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "fastbp" else ("fastbp", *parts))
        modules[name.removesuffix(".__init__")] = path
    return modules


MODULES = find_modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
ALL = sorted(MODULES)
KERNELS = [name for name in ALL if name.startswith("fastbp.kernels")]


def walk(node: ast.AST, into_functions: bool):
    """Like `ast.walk`, without what only a type checker sees."""
    yield node
    for child in ast.iter_child_nodes(node):
        is_typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_typing and (into_functions or not isinstance(child, ast.FunctionDef)):
            yield from walk(child, into_functions)


def find_imports(module: str, into_functions: bool = True) -> tuple[set[str], set[str]]:
    """The dotted names that a module imports, as (absolute, relative)."""
    package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    absolute, relative = set(), set()
    for node in walk(TREES[module], into_functions):
        if isinstance(node, ast.Import):
            absolute |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            names = {name if name in MODULES else base for name in names}
            (relative if node.level else absolute).update(names)
    return absolute, relative


IMPORTS = {name: set.union(*find_imports(name)) for name in ALL}
IMPORTS_AT_THE_TOP = {name: set.union(*find_imports(name, into_functions=False)) for name in ALL}


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_walk_sees_the_source_tree():
    assert {"fastbp", "fastbp.mlp", "fastbp.backend", "fastbp.kernels", "fastbp.kernels.cpu"} <= set(ALL)
    assert any(is_inside(name, "numba") for module in KERNELS for name in IMPORTS[module])
    assert any(is_inside(name, "fastbp.kernels.cpu") for name in IMPORTS["fastbp.backend"])


@pytest.mark.parametrize("module", KERNELS)
def test_kernels_import_numba_numpy_the_standard_library_and_each_other(module):
    absolute, relative = find_imports(module)
    allowed = {"numba", "numpy", *sys.stdlib_module_names}
    allowed |= {
        "fastbp.kernels.cpu.simd": {"llvmlite"},
        "fastbp.kernels.cuda.ptx": {"llvmlite"},
        "fastbp.kernels.cuda.compat": {"cuda"},
    }.get(module, set())
    strangers = {name for name in absolute if name.split(".")[0] not in allowed}
    strangers |= {name for name in relative if not is_inside(name, "fastbp.kernels")}
    assert not strangers, f"{module} imports {sorted(strangers)}"


@pytest.mark.parametrize("module", sorted(set(ALL) - {"fastbp.kernels.cuda.compat", "fastbp.kernels.cuda.ptx"}))
def test_numba_cuda_is_met_in_two_files(module):
    """It is in maintenance mode: what follows it will be another package."""
    source = MODULES[module].read_text(encoding="utf-8")
    assert not re.search(r"numba\.cuda\b|from numba import .*\bcuda\b|^from cuda\b|^import cuda\b", source, re.M)


@pytest.mark.parametrize("module", ALL)
def test_only_the_backend_sees_the_engines_and_no_engine_sees_another(module):
    for engine in ENGINES:
        if module != "fastbp.backend" and not is_inside(module, engine):
            seen = {name for name in IMPORTS[module] if is_inside(name, engine)}
            assert not seen, f"{module} imports {sorted(seen)}"


@pytest.mark.parametrize("module", sorted(SHARED & set(ALL)))
def test_what_the_engines_share_imports_only_its_like(module):
    inner = {name for name in IMPORTS[module] if is_inside(name, "fastbp")}
    assert inner <= SHARED, f"{module} imports {sorted(inner - SHARED)}"


def test_imports_run_one_way():
    graph = {module: IMPORTS[module] & set(ALL) for module in ALL}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a cycle of imports: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize("module", sorted(set(ALL) - {"fastbp.cli"}))
def test_only_the_command_line_imports_argparse(module):
    assert "argparse" not in IMPORTS[module]


@pytest.mark.parametrize("module", sorted(set(ALL) - {"fastbp.sklearn", "fastbp.tabular"}))
def test_optional_packages_wait_until_they_are_needed(module):
    optional = {name for name in IMPORTS_AT_THE_TOP[module] if name.split(".")[0] in OPTIONAL}
    assert not optional, f"{module} imports {sorted(optional)} at its top"


def test_importing_fastbp_imports_no_optional_package():
    program = "import sys, fastbp; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"fastbp", "numba"} <= set(done.stdout.split())
    assert not OPTIONAL & set(done.stdout.split())


@pytest.mark.parametrize("module", ALL)
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(TREES[module]), f"{module} has no docstring"


def test_the_package_list_is_what_stands_on_disk():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    found = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(setuptools["packages"]) == sorted(found)
    strays = {path.parent for path in MODULES.values()} - {MODULES[name].parent for name in found}
    assert not strays, f"folders with modules and no __init__.py: {sorted(map(str, strays))}"


def test_the_symlink_leads_to_the_kernels():
    link = ROOT / "fastbp" / "kernels"
    target = str(link.readlink()) if link.is_symlink() else link.read_text(encoding="utf-8").strip()
    assert target == "../kernels"
