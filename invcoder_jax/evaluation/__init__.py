"""Benchmarks: their problems, programs and verdicts."""
