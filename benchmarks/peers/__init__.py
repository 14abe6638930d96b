"""The services that benchmarks/serving.py compares with, one a file, as their own documentation would have them.

They run in an environment of their own (`.venv-peers`) and import nothing of augmint.
"""
