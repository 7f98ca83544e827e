#!/bin/sh
# A real SLURM of one node on this machine, reached by loopback only; for tests and for trying out sweeps.
#
#     scripts/slurm_local.sh install   Debian's slurmctld, slurmd, munge (as root)
#     scripts/slurm_local.sh start     two jobs of one core at a time; partitions "debug" and "urgent"
#     eval "$(scripts/slurm_local.sh env)"     lets sbatch, squeue and gfn_runner of this shell find it
#     scripts/slurm_local.sh status
#     scripts/slurm_local.sh stop      cancels every job, ends every daemon that `start` has started
#
# Needs root and no systemd. All its files lie in $GFN_SLURM, /tmp/gfn_slurm where that is not set.
# A job of "urgent" puts a job of "debug" back into the queue where the cores do not suffice for both.
set -eu

home=${GFN_SLURM:-/tmp/gfn_slurm}
conf=$home/slurm.conf
SLURM_CONF=$conf
export SLURM_CONF

say() { echo "slurm_local: $*" >&2; }
fail() { say "$*"; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || fail "needs root: the daemons run jobs as other users, munged as its own"; }

# Whether the daemon of a pid file lives; one that has ended and that nobody has asked after does not.
lives() {
    [ -s "$1" ] || return 1
    case "$(ps -o stat= -p "$(cat "$1")" 2>/dev/null)" in "" | Z*) return 1 ;; esac
}

# What a pid file names is gone, or 20 seconds have passed.
wait_gone() {
    for _ in $(seq 100); do lives "$1" || return 0; sleep 0.2; done
    return 1
}

# The first command that is not there; nothing where all are.
first_missing() {
    for command in slurmctld slurmd munged squeue; do
        command -v "$command" >/dev/null || { echo "$command"; return; }
    done
}

install_packages() {
    need_root
    if [ -z "$(first_missing)" ]; then return; fi
    command -v apt-get >/dev/null || fail "$(first_missing) is missing, and there is no apt-get to install it with"
    apt-get update -qq
    # The daemons are started by this script, not by the packages: at run level 1 these start none.
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurmctld slurmd slurm-client munge >/dev/null
}

write_conf() {
    host=$(hostname -s)
    install -d -m 0755 "$home" "$home/spool" "$home/state"
    # Without cred_expire a requeued job waits for two minutes. NoInAddrAny: loopback only.
    cat > "$conf" <<EOF
ClusterName=gfnlocal
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${GFN_SLURM_PORT:-16817}
SlurmdPort=$((${GFN_SLURM_PORT:-16817} + 1))
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=100000,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MailProg=/bin/true
MpiDefault=none
KillWait=5
OverTimeLimit=0
DefMemPerCPU=512
# Arrays of up to 39 jobs, so that a test can ask for more.
MaxArraySize=40
# A job that has ended is remembered for this long (seconds): here no accounting remembers it.
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4096 State=UNKNOWN
PartitionName=debug Nodes=$host Default=YES MaxTime=60 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=$host Default=NO MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF
EOF
}

start_munge() {
    if munge -n >/dev/null 2>&1; then return; fi # one runs already, and is not ours to stop
    [ -s /etc/munge/munge.key ] || runuser -u munge -- /usr/sbin/mungekey --create
    install -d -o munge -g munge -m 0755 /run/munge
    runuser -u munge -- /usr/sbin/munged
    touch "$home/munge_is_ours"
}

start() {
    need_root
    missing=$(first_missing)
    [ -z "$missing" ] || fail "$missing is missing: scripts/slurm_local.sh install"
    lives "$home/slurmctld.pid" && fail "runs already; scripts/slurm_local.sh stop"
    rm -rf "$home"
    write_conf
    start_munge
    slurmctld
    slurmd
    for _ in $(seq 100); do
        if [ "$(sinfo -h -p debug -o %t 2>/dev/null)" = idle ]; then
            say "runs; eval \"\$(scripts/slurm_local.sh env)\""
            return
        fi
        sleep 0.2
    done
    tail -n 20 "$home"/slurm*.log >&2
    stop
    fail "the node has not come up within 20 seconds"
}

stop() {
    need_root
    [ -f "$conf" ] || { say "does not run"; return; }
    if lives "$home/slurmctld.pid"; then
        scancel --quiet --state=PENDING -u root 2>/dev/null || true
        scancel --quiet -u root 2>/dev/null || true
        for _ in $(seq 50); do
            [ -z "$(squeue -h 2>/dev/null)" ] && break
            sleep 0.2
        done
        scontrol shutdown 2>/dev/null || true
    fi
    for daemon in slurmctld slurmd; do
        if ! wait_gone "$home/$daemon.pid"; then
            kill -9 "$(cat "$home/$daemon.pid")"
        fi
    done
    if [ -f "$home/munge_is_ours" ]; then
        runuser -u munge -- /usr/sbin/munged --stop >/dev/null 2>&1 || true
    fi
    rm -rf "$home"
    say "stopped"
}

case "${1:-}" in
    install) install_packages ;;
    start) start ;;
    stop) stop ;;
    status) lives "$home/slurmctld.pid" || fail "does not run"; sinfo; squeue ;;
    env) echo "export SLURM_CONF=$conf" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
