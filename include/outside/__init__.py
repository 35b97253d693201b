"""The world outside the factory: it delivers raw material into the landing bucket, and knows nothing of the factory."""
