"""The parts of paper 57's rerun: sizes, the protocol on scorers that are known, trained decoders, the picture."""
