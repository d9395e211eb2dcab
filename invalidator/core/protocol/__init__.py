"""What arrives from a database: payloads, channels, batches and gaps."""
