"""What trains in a comparison: settings by name in ``catalogue``, one module for each kind of training.

``white_box`` trains with this package, ``stable_baselines`` with Stable-Baselines3 and sb3-contrib, whose settings are
in ``zoo`` and ``catalogue``.
"""
