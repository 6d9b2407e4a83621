"""The parts of paper 34's rerun: needles in a book, what happens without some heads, the picture."""
