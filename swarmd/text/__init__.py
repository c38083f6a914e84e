"""Text at the coordinator: tokenizers, chat templates, detokenising and stop strings. No torch."""
