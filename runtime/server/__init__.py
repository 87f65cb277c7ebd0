"""HTTP serving: the Open Inference Protocol v2 and OpenAI embeddings over the batching engine. Import submodules directly."""
