"""Benchmarks of ftcore against transformers and CTranslate2.

`cases.py` lists what is measured, `backends.py` how each library does it, `worker.py` how it is timed.
"""
