"""The generated code runs with the protobuf and gRPC that are installed here."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import google.protobuf
import grpc
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "daemon").with_suffix("").parts)
    for path in (ROOT / "daemon/ktd").glob("**/*_pb2*.py")
)


def version_of(text: str) -> tuple[int, ...]:
    """``"6.33.5"`` as numbers."""
    return tuple(int(part) for part in text.split("."))


@pytest.mark.parametrize("module", MODULES)
def test_generated_module_loads(module: str) -> None:
    """Generated code refuses a runtime that is older than itself; warnings are errors here."""
    importlib.import_module(module)


def test_declared_minimums_are_what_the_code_was_generated_for() -> None:
    """What pyproject.toml admits, the generated code accepts."""
    project = (ROOT / "pyproject.toml").read_text()
    pins = (ROOT / "scripts/generate_proto.sh").read_text()
    for package, pin in (("protobuf", "protobuf"), ("grpcio", "grpcio-tools")):
        declared = re.search(rf'"{package}>=([\d.]+)"', project)
        generated = re.search(rf"\b{pin}==([\d.]+)", pins)
        assert declared is not None
        assert generated is not None
        assert declared[1] == generated[1]


def test_installed_runtime_is_new_enough() -> None:
    """The oldest SGLang that ktd supports brings a protobuf and a gRPC that the code accepts."""
    assert version_of(google.protobuf.__version__) >= (6, 33, 5)
    assert version_of(grpc.__version__) >= (1, 81, 1)
