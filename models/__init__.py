"""Model directories that llmos takes as they are: Hugging Face encoders."""
