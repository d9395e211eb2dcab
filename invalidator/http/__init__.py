"""The HTTP listeners: the API and the probes."""
