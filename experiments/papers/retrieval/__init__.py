"""Reading a part of the past: what the reruns of papers 37 (Landmark) and 56 (LongHeads) share."""
