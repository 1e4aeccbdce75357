"""Pure PyTorch core of MMBM: media decoding, encoders, fusion, tasks. Imports no Ray and no web framework."""
