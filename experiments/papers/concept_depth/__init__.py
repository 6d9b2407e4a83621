"""The parts of paper 49's rerun: reviews and what is asked of them, and what a model has behind every layer."""
