"""What objectives compute over all pairs of images and texts, written for speed: torch anywhere, Triton on CUDA."""
