"""ClipCap, a decoder on a frozen encoder's embeddings."""
