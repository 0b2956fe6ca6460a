"""What generates responses for an agent: the built-in decoder, transformers, vLLM, a completions server; one interface."""
