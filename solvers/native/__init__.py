"""C++ made from a vector field: traced once, compiled with the system's compiler, cached on disk.

See :mod:`solvers.native.adaptive` for what runs in it and what falls back.
"""
