"""The recipe of etude: data, training, adapters and evaluation set of the bundled study model.

`python -m recipe all` (run in `models/etude/`) does everything; see `__main__.py`.
"""
