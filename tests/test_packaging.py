"""What a user installs: the sdist and the wheel, from a checkout with and without symlinks.

These tests need the package index, and fail where it cannot be reached.
"""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import build
import pytest

import fastbp

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {"numba", "numpy", "safetensors", "tqdm"}
TRAIN = """
import numpy as np, fastbp
from numba.core import event
X = np.random.default_rng(0).normal(size=(256, 3))
net = fastbp.MLP((3, 16, 1), random_state=0)
with event.install_recorder("numba:compile") as recorder:
    history = net.fit(X, X @ [1.0, 2.0, 3.0], optimizer=fastbp.Adam(0.01), epochs=20)
assert history.loss[-1] < 0.1 * history.loss[0], history.loss
print([e.data["dispatcher"].py_func.__qualname__ for _, e in recorder.buffer if e.is_start])
"""
PLOT = """
import fastbp
history = fastbp.MLP((1, 1)).fit([[0.0], [1.0]], [0.0, 1.0], epochs=1)
try:
    history.plot()
except ImportError as error:
    print(error)
"""


def run(*command: str | Path, cwd: Path, status: int = 0) -> str:
    """What a command says; where its status is another, that is what the test fails with."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == status, f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}"
    return done.stdout


def read_sources() -> dict[str, bytes]:
    """Every module of the source tree and the mark that it is typed, under the name that it must have in the wheel."""
    files = {path: path.relative_to(ROOT) for path in [*(ROOT / "fastbp").rglob("*.py"), ROOT / "fastbp" / "py.typed"]}
    files |= {path: "fastbp" / path.relative_to(ROOT) for path in (ROOT / "kernels").rglob("*.py")}
    return {name.as_posix(): path.read_bytes() for path, name in files.items()}


@pytest.fixture(scope="module", params=["symlink", "no symlink"])
def distributions(request, tmp_path_factory) -> Path:
    """The folder of an sdist and of the wheel that was built from it."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("fastbp", "kernels"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    if request.param == "no symlink":
        (checkout / "fastbp" / "kernels").unlink()
        (checkout / "fastbp" / "kernels").write_text("../kernels")  # as git does

    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    has_all = not any(list(build.check_dependency(requirement)) for requirement in requirements)
    isolation = ["--no-isolation"] if has_all else []
    run(sys.executable, "-m", "build", *isolation, checkout, cwd=checkout)
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(distributions) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


def test_the_sdist_holds_the_sources_and_the_licence(distributions):
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("fastbp/kernels/", "kernels/") for name in read_sources()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    sources = read_sources()
    assert sorted(packed) == sorted(sources)
    assert packed == sources, "a module in the wheel differs from its source"


def test_the_wheel_describes_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
        entry_points = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert metadata["Version"] == fastbp.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert {line.partition(">")[0].strip() for line in required} == REQUIRED
    assert "fastbp = fastbp.cli:main" in entry_points


@pytest.fixture(scope="module")
def clean_environment(wheel, tmp_path_factory) -> Path:
    """The folder of executables of an environment that holds the wheel with its required dependencies."""
    path = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", path, cwd=path)
    executables = path / ("Scripts" if os.name == "nt" else "bin")
    run(executables / "python", "-m", "pip", "install", "--quiet", wheel, cwd=path)
    return executables


@pytest.mark.parametrize("distributions", ["symlink"], indirect=True)
class TestCleanEnvironment:
    @pytest.mark.parametrize("package", ["matplotlib", "pandas", "sklearn"])
    def test_optional_packages_are_not_there(self, clean_environment, package, tmp_path):
        said = run(clean_environment / "python", "-c", f"import {package}", cwd=tmp_path, status=1)
        assert "ModuleNotFoundError" in said

    def test_it_trains(self, clean_environment, tmp_path):
        """The first use compiles and says so in a line, the loop in a second process where there is a second core;
        later ones neither compile nor say anything.
        """
        first, second = (run(clean_environment / "python", "-c", TRAIN, cwd=tmp_path) for _ in range(2))
        notice, compiled = first.splitlines()
        assert "compil" in notice
        assert "'activate'" in compiled
        assert ("'train'" in compiled) is (os.cpu_count() == 1)
        assert second == "[]\n"

    def test_plotting_names_the_extra(self, clean_environment, tmp_path):
        assert 'pip install "fastbp[plot]"' in run(clean_environment / "python", "-c", PLOT, cwd=tmp_path)

    def test_the_command_line_names_the_extra(self, clean_environment, tmp_path):
        said = run(clean_environment / "fastbp", "train", "digits", cwd=tmp_path, status=2)
        assert 'pip install "fastbp[cli]"' in said
        assert len(said.splitlines()) == 1, said
