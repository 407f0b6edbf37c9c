"""Instruction corpora: read from files, code, the Hub or TFDS, and published as TFDS datasets."""
