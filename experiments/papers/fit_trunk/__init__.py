"""The parts of paper 30's rerun: names that are asked for far away, and what length costs."""
