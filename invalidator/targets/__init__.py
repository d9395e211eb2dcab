"""The kinds of target, one package each."""
