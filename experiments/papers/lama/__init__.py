"""The parts of paper 51's rerun: the sentence encoder, the task of two cues, and what LAMA looks at."""
