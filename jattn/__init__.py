"""Build, train and understand attention and its successors in JAX."""
