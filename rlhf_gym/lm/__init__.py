"""Language models: loading, tokenizers, adapters, caches of keys and values, decoding, log-probabilities."""
