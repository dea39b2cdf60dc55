"""The models on this machine: finds the GGUF that a name means, and makes or fetches it the first time."""
