"""What is wrong with a robot's file; apart from the code that reads one, so that catching it loads nothing else."""


class RobotFileError(ValueError):
    """A robot's file cannot be read, or holds what is not supported; the message names all of it."""
