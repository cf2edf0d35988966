"""Servers and the reference that the acceptance tests compare."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktd.bench.servers import stock_server
from tests.acceptance.agreement import error_of
from tests.acceptance.reference import Reference
from tests.device import on_gpu
from tests.live import serve_arguments

TOKENS = ["--max-total-tokens", "16384"]


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    """Transformers in float32."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("Transformers is not installed here: pip install 'ktd[engine]'")
    return Reference(model_dir)


@pytest.fixture(scope="session")
def stock_url(model_dir: Path) -> Iterator[str]:
    """Unmodified SGLang on this host, for the whole session: the baseline of the same run."""
    with stock_server(model_dir, [*TOKENS, *serve_arguments()], gpu=on_gpu()) as server:
        yield f"http://127.0.0.1:{server.endpoint.port}"


@pytest.fixture(scope="session")
def stock_error(stock_url: str, reference: Reference) -> float:
    """What unmodified SGLang loses to bfloat16."""
    return error_of(stock_url, reference)
