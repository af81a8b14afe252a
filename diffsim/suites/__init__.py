"""Suites: a matrix of runs from one TOML file, on this machine or on a Slurm cluster.

``suite_file`` reads the file, ``plan`` resolves and names its runs, ``worker`` trains one of them in a process of its
own, ``local`` and ``slurm`` start workers, ``states``, ``index`` and ``tables`` say what became of them.
"""
