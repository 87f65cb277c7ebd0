"""Text generation at the level of tokens: continuous batching over a paged cache, for one model and many requests at once."""
