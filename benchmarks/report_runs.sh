#!/bin/sh
# The comparison of the README and of docs/report: six tasks, half of them judged in Gymnasium's MuJoCo.
# benchmarks/results/six_tasks holds the records of what was run so far.  Stopped or killed, it goes on where it was
# when started again; seed after seed, so that what is there at any time covers all tasks and contenders.
#
#     sh benchmarks/report_runs.sh runs/report 10
#
# About 40 CPU minutes a seed, and four hours for settings that are searched.
set -e
out=${1:-runs/report}
seeds=${2:-10}
all="pendulum cartpole_swingup quadrotor gym:HalfCheetah-v5 gym:Hopper-v5 gym:Walker2d-v5"
three="pendulum cartpole_swingup quadrotor"

count=1
while [ "$count" -le "$seeds" ]; do
    diffsim compare $all --against ppo,ppo_wide,cma_es --seeds "$count" --budget 60s --workers 1 --out "$out"
    diffsim compare $three --against sac,tqc --seeds "$count" --budget 60s --workers 1 --out "$out"
    count=$((count + 1))
done
# Settings searched with 8 trials a task each, for ours and for PPO alike, on a seed of its own: ours_tuned, ppo_tuned.
diffsim compare $all --against ppo_wide --seeds "$seeds" --budget 60s --workers 1 --tune 8 --tuning-seeds 1000..1000 --out "$out"
# The ablations a sceptic asks for were run with five seeds, in a folder of their own: benchmarks/results/contender_ablations.
#     diffsim compare $three --against ppo_state_box,ppo_ours,ours_task_starts --seeds 5 --budget 60s --out runs/ablations
diffsim report "$out"
