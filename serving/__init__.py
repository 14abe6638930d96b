"""Bundles in, HTTP out: `augmint serve BUNDLE…` or `bentoml serve serving.service:AugmintService`. Never torch."""
