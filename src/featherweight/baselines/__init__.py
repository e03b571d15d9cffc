"""Do I need to fine-tune at all? What a model does without: prompts, examples in context, frozen embeddings; and what
each of these costs beside an adapter."""
