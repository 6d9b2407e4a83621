"""The parts of paper 50's rerun: the encoders, the probes on their features, the costs, and the pictures."""
