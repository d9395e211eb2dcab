"""What has to be delivered to one target, and how much of it the target has confirmed."""
