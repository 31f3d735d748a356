"""The package as a whole: its README, its version."""

import re

import pytest
from conftest import ROOT


def test_the_example_of_the_readme_runs(default_server):
    torch = pytest.importorskip("torch")
    (example,) = re.findall(
        r"## From Python\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert len(example.splitlines()) == 10
    names = {}
    exec(example, names)
    assert names["total_norm"] > 1
    clipped = torch.cat([one.grad.flatten() for one in names["model"].parameters()])
    assert clipped.norm() == pytest.approx(1, rel=1e-5)


def test_its_version_is_the_project_s():
    (project,) = re.findall(
        r"^project\(gradclip VERSION ([0-9.]+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE
    )
    (package,) = re.findall(
        r'^version = "(.*)"', (ROOT / "client/python/pyproject.toml").read_text(), re.MULTILINE
    )
    assert package == project
