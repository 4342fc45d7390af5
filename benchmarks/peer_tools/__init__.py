"""fxopt's int8 against the peers' on one and the same model: cases, one file a peer, timing, tables.

What runs in a peer's own environment (job.py and the files of the peers) imports neither fxopt nor a model zoo.
"""
