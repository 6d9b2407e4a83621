"""The parts of paper 38's rerun: prompts of four tasks in pairs, what heads do to them, the picture."""
