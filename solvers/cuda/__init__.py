"""Kernels for CUDA devices: what emitted code is compiled against, the compiler, and a CPU in the place of a device."""
