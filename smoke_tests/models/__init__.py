"""Whole models, small and random, as the checks run them: made, saved, loaded, split, compared.

| module | holds |
|---|---|
| `tiny` | the models, saved as a checkpoint and loaded by transformers |
| `run` | one run: prefill and greedy decode with a KV cache, and what every layer gave |
| `roundings` | how far a run in a 2-byte type may be from one in float32 |
| `compare` | what does not agree, by layer |
"""
