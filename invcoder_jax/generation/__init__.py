"""Completions from a decoder: sampling rules, device programs, and the host loop that feeds them.

Usage: `completions = batching.generate(loaded, requests, sampling, settings)`.
"""
