"""A random 2-layer model through the whole loop: for tests and for reading, not for results.

Command:   invcoder run --config=configs/tiny.py --workdir=/tmp/tiny
Hardware:  two CPU cores
Hours:     not measured
Expected:  pass@1 of 0 for all three models; every stage leaves its files
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """base.py made small enough to run in seconds."""
    config = base.get_config()
    config.name = "tiny"
    config.model.base = "random:tiny"
    config.model.compute_dtype = "float32"
    config.corpus.source = "stdlib"
    config.corpus.limit = 16
    config.corpus.heldout = 4
    config.corpus.max_chars = 400
    config.corpus.min_chars = 40
    config.summarize.candidates = 3
    config.summarize.max_new_tokens = 12
    config.train.batch = 4
    config.train.microbatch = 2
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 1
    config.train.max_length = 768  # its tokens are bytes
    config.train.length_buckets = (768,)
    config.train.checkpoint_every = 2
    config.generation.rows = 8
    config.generation.prompt_buckets = (1024, 2048)
    config.generation.sync_steps = 4
    config.generation.part_rows = 4
    config.scoring.rows = 8
    config.evaluation.every = 41
    config.evaluation.max_new_tokens = 8
    return config
