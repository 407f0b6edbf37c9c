"""One decoder for every family: spec, attention, cache, the module, and where weights come from.

Usage: `loaded = sources.load_model(ref, layout_of, param_dtype=..., compute_dtype=...)`.
"""
