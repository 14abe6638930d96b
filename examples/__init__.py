"""Worked examples that are part of the product: the demo."""
