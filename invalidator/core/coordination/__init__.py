"""The protocol by which the sidecars of an installation agree which of them flushes a shared target."""
