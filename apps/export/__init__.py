"""Exports of a run: a merged model, an adapter, a classifier, a GGUF file, each with a card and a check."""
