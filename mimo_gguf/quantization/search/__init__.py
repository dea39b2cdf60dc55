"""The search for better scales than llama.cpp's, within its block types."""
