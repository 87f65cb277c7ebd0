"""HTTP serving: the Open Inference Protocol v2 and OpenAI embeddings over the batching engine. Import from the modules: they are heavy."""
