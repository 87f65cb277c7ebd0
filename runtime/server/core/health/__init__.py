"""The health matrix: rules of a file, each a condition on what the server sees of itself, and what is done while it holds."""
