"""invcoder_jax: Inverse-Instruct (arXiv 2407.05700) in JAX and Flax NNX.

The paper's loop from a base model to an InverseCoder: `invcoder run --config=... --workdir=...`.
"""

__version__ = "0.1.0"
