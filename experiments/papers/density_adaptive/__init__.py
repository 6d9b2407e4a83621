"""The parts of paper 02's rerun: the classifier and its gates, what is trained, and what the weights say."""
