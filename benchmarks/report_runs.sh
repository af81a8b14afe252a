#!/bin/sh
# A whole report: six tasks, ten seeds.  benchmarks/results/six_tasks is the part that was run so far, two opponents
# and four seeds.  Stopped or killed, it goes on where it was when started again.
#
#     sh benchmarks/report_runs.sh runs/report
#
# At most about 6.3 CPU hours for the first command, 1.9 for the ablations and 3.4 for SAC (51 steps a CPU second).
set -e
out=${1:-runs/report}
all="pendulum cartpole_swingup quadrotor reacher double_pendulum gym:HalfCheetah-v5"
three="pendulum cartpole_swingup reacher"

diffsim compare $all --against ppo,ppo_wide,sac_wide,cma_es --seeds 10 --budget 60s --out "$out"
# Ablations: PPO from the state box, PPO with our parts, ours from the task's starts only.
diffsim compare $three --against ppo_wide,ppo_state_box,ppo_ours,ours_task_starts --seeds 10 --budget 60s --out "$out"
# The Zoo's SAC learns from few steps and needs much time: by steps, as many as the Zoo's pendulum has.
diffsim compare $three --against sac --seeds 10 --budget 60s --budget sac:20000steps --out "$out"
diffsim report "$out"
