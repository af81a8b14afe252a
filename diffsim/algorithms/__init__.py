"""How policies are trained, one file an algorithm."""

from diffsim.config import ALGORITHMS as ALGORITHMS
