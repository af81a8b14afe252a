"""``python -m robotics_envs.julia``."""

from robotics_envs.julia.commands import main
from robotics_envs.julia.installation import MODULE

main(prog_name=f"python -m {MODULE}")
