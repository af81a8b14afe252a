"""Suites: a matrix of runs from one TOML file, on this machine, on Ray or on a Slurm cluster.

``suite_file`` reads the file, ``plan`` resolves and names its runs, ``worker`` trains one of them in a process of its
own, ``local``, ``ray_tasks`` and ``slurm`` start workers, ``index`` and ``tables`` say what became of them.
"""
