"""Tasks of suites on their own models: reward, observation, reset and end of an episode as there.

The models are files of the installed packages.  Each class is the twin of the environment that its ``gym_id`` names; a
policy of one acts in the other.
"""
