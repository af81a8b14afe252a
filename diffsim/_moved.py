"""Where modules of this package were in version 0.1.0, and where they are."""

MOVED = {
    "diffsim": {
        "authorship": "diffsim.runs.authorship",
        "critic": "diffsim.algorithms.critic",
        "curves": "diffsim.runs.curves",
        "evaluation": "diffsim.runs.evaluation",
        "log_writers": "diffsim.runs.log_writers",
        "progress": "diffsim.runs.progress",
        "provenance": "diffsim.runs.provenance",
        "references": "diffsim.runs.references",
        "resuming": "diffsim.runs.resuming",
        "rollouts.layers": "solvers.compiler.layers",
        "run": "diffsim.runs.run",
        "runfile": "diffsim.runs.runfile",
        "show": "diffsim.runs.show",
        "signals": "diffsim.runs.signals",
        "user_code": "diffsim.runs.user_code",
        "whole_files": "diffsim.runs.whole_files",
    }
}
