"""What one target is still to be sent, and how far it has confirmed."""
