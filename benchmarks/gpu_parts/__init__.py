"""The parts of ``benchmarks/gpu.py``: what each checks or measures on a device."""
