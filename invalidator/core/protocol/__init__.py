"""The input from a database: payloads, channels, batches and gaps."""
