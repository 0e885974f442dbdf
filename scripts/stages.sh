# What the scripts share that run one thing after another. It is sourced, not run; whoever does so ends
# the stage that runs, by `end_group "$stage_pid"`, when it is ended itself.

set -m # each stage is a process group of its own, so that none of its processes outlives it

stage_pid=""
failed_stages=0

stop() { echo "scripts/${0##*/}: $*" >&2; exit 1; }

end_group() {
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for _ in {1..100}; do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

# Runs one stage. It is waited for in the background, because bash would hold back a signal to us
# until a command in the foreground has ended.
stage() {
    local name=$1 from=$SECONDS status=0
    shift
    echo "== $name"
    ("$@") </dev/null &
    stage_pid=$!
    wait "$stage_pid" || status=$?
    stage_pid=""
    if [ "$status" -ne 0 ]; then
        echo "== $name: failed after $((SECONDS - from)) s"
        failed_stages=$((failed_stages + 1))
        return "$status"
    fi
    echo "== $name: $((SECONDS - from)) s"
}
