"""What we can be asked over HTTP."""
