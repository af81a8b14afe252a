#!/bin/bash
# A Slurm of this machine only, without systemd and accounting, everything in one folder; as root.
#   tests/one_host_slurm.sh start DIR    writes DIR/slurm.conf; use it with: export SLURM_CONF=DIR/slurm.conf
#   tests/one_host_slurm.sh stop DIR
# Debian: apt-get install slurmctld slurmd slurm-client munge
set -eu
command=${1:?start or stop} D=${2:?a folder}
PATH=$PATH:/usr/sbin

pids() {
  cat "$D"/slurmd.pid "$D"/slurmctld.pid "$D"/munge/munged.pid 2>/dev/null || true
}

if [ "$command" = stop ]; then
  export SLURM_CONF="$D/slurm.conf"
  jobs=$(squeue -h -o %i 2>/dev/null || true)
  if [ -n "$jobs" ]; then
    timeout 10 scancel $jobs || true
    for _ in $(seq 100); do [ -n "$(squeue -h -o %i)" ] || break; sleep 0.1; done
  fi
  for pid in $(pids); do kill "$pid" 2>/dev/null || true; done
  for _ in $(seq 100); do
    alive=
    for pid in $(pids); do if kill -0 "$pid" 2>/dev/null; then alive=1; fi; done
    [ -n "$alive" ] || exit 0
    sleep 0.1
  done
  exit 1
fi

mkdir -p "$D"/state "$D"/spool "$D"/log "$D"/munge
chmod 711 "$D/munge"
HOST=$(hostname -s)
dd if=/dev/urandom of="$D/munge/munge.key" bs=1024 count=1 status=none
chmod 400 "$D/munge/munge.key"
munged --force --key-file="$D/munge/munge.key" --socket="$D/munge/munge.socket" --pid-file="$D/munge/munged.pid" \
  --seed-file="$D/munge/munged.seed" --log-file="$D/munge/munged.log" --num-threads=2
# Two free ports.
read -r PORT1 PORT2 <<<"$(python3 -c '
import socket
found = [socket.socket() for _ in range(2)]
for one in found:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in found))')"
# cred_expire is how long a requeued job waits before it may start again; by default 120 s.
cat > "$D/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=$PORT1
SlurmdPort=$PORT2
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd.pid
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
PriorityType=priority/basic
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=${CPUS:-2} RealMemory=${MEMORY_MB:-4000} State=UNKNOWN
PartitionName=low Nodes=$HOST Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=${GRACE:-10}
PartitionName=high Nodes=$HOST MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF="$D/slurm.conf"
slurmctld -c
slurmd -c
for _ in $(seq 100); do
  if sinfo -h -o %T 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 0.1
done
cat "$D"/log/*.log >&2
exit 1
