#!/usr/bin/env bash
# hosts.sh -- a cluster on several hosts, from one file, over ssh.
#
#   deploy/hosts.sh HOSTS install|start|stop|status [NAME...]
#
# HOSTS has a line a process (# begins a comment), etcd members first:
#   NAME  SSH-HOST  ROLE         ADDRESS          flags of `baton ROLE`
#   e1    host-a    etcd         10.0.0.1
#   c1    host-a    coordinator  10.0.0.1:50051   --expect-prefill 1 --expect-decode 1
#   p1    host-b    prefill      10.0.0.2:50100   --kv-pages 8192
#   d1    host-c    decode       10.0.0.3:50100   --kv-pages 8192
#
#   install  packages where there is apt-get (install.sh), the executable and the model once a host, certificates, the unit, and a
#            YAML file a process
#   start    etcd, then nodes, then coordinators; waits until each serves; what runs already is left alone
#   stop     the other way round; each drains
#
#   MODEL     the model file here          [models/SmolLM2-135M-Instruct.Q4_1.gguf]
#   BATON     the executable here          [build/baton]
#   CERTS     a folder of `baton certs`: TLS, with ca.crt and a NAME.crt, NAME.key for each process  [none: every line but etcd's
#             needs --insecure beyond loopback]
#   TOKENS    who is let in by a token: coordinators get this file as their --tokens-file  [none]
#   SSH       how a host is asked          [ssh]; the hosts' user may write to / there (root, or ssh with a wrapper that does sudo)
#   ROOT      a folder on the hosts instead of /; processes are then started without systemd, their output in ROOT/log
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
[ $# -ge 2 ] && [ -r "$1" ] || { sed -n '2,6s/^# \?//p' "$0" >&2; exit 2; }
hosts=$1 action=$2
shift 2
wanted=" $* "
MODEL=${MODEL:-$here/models/SmolLM2-135M-Instruct.Q4_1.gguf} BATON=${BATON:-$here/build/baton} CERTS=${CERTS:-} TOKENS=${TOKENS:-} SSH=${SSH:-ssh} ROOT=${ROOT:-}
etc=$ROOT/etc/baton lib=$ROOT/var/lib/baton exe=$ROOT/usr/local/bin/baton

fail() { echo "hosts.sh: $*" >&2; exit 1; }
on() { $SSH "$1" sh; } # what stands on stdin

names=() ; declare -A host_of role_of address_of flags_of
registry= members=
while read -r name host role address flags; do
    case "$name" in '' | '#'*) continue ;; esac
    [ -n "$address" ] || fail "$hosts: '$name $host $role': expected NAME SSH-HOST ROLE ADDRESS [flags]"
    [ -z "${role_of[$name]:-}" ] || fail "$hosts: $name stands there twice"
    case "$role" in
    etcd) registry+="${registry:+,}$address:2379" members+="${members:+,}$name=http://$address:2380" ;;
    coordinator | prefill | decode) ;;
    *) fail "$hosts: $name is a '$role': expected etcd, coordinator, prefill or decode" ;;
    esac
    names+=("$name") host_of[$name]=$host role_of[$name]=$role address_of[$name]=$address flags_of[$name]=$flags
done <"$hosts"
[ -n "$registry" ] || fail "$hosts: no line has the role etcd"
for name in $*; do [ -n "${role_of[$name]:-}" ] || fail "$hosts has no $name"; done

alone() { case "$1" in no-*) printf '%s: false\n' "${1#no-}" ;; ?*) printf '%s: true\n' "$1" ;; esac; }

# Lines of a YAML file: --kv-pages 8192 becomes `kv-pages: "8192"`, --explain `explain: true`, --no-cache `cache: false`.
yaml() {
    local name=$1 word key=
    printf 'id: %s\nmodel: %s\nregistry: etcd://%s\nlisten: %s\n' "$name" "$lib/${MODEL##*/}" "$registry" "${address_of[$name]}"
    case "${role_of[$name]}" in prefill | decode) printf 'kv-listen: %s:0\n' "${address_of[$name]%:*}" ;; esac
    [ -z "$CERTS" ] || printf 'tls-ca: %s/ca.crt\ntls-cert: %s/%s.crt\ntls-key: %s/%s.key\n' "$etc" "$etc" "$name" "$etc" "$name"
    [ -z "$TOKENS" ] || [ "${role_of[$name]}" != coordinator ] || printf 'tokens-file: %s/tokens\n' "$etc"
    for word in ${flags_of[$name]} --; do
        case "$word" in
        --*) alone "$key"; key=${word#--} ;;
        *) printf '%s: "%s"\n' "${key:?"hosts.sh: $name: '$word' is no flag"}" "$word"; key= ;;
        esac
    done
}

etcd_command() { # without TLS: a network of the cluster's own
    local name=$1 at=${address_of[$1]}
    echo "etcd --name $name --data-dir $ROOT/var/lib/etcd/$name --initial-cluster $members --listen-client-urls http://$at:2379 \
--advertise-client-urls http://$at:2379 --listen-peer-urls http://$at:2380 --initial-advertise-peer-urls http://$at:2380 --logger zap"
}

# Of install.sh's lists: runtime or etcd. Under ROOT the host's packages are not touched.
packages() {
    local host=$1 list=$2
    [ -z "$ROOT" ] || return 0
    if on "$host" <<<"command -v apt-get >/dev/null"; then $SSH "$host" bash -s "$list" <"$here/deploy/install.sh"
    else echo "hosts.sh: $host has no apt-get: what deploy/install.sh calls $list has to be there" >&2; fi
}

# The first of a host's processes brings the model along; tar follows the link to it.
declare -A has_model
install_baton() {
    local name=$1 host=${host_of[$1]} stage=$2
    if [ -z "${has_model[$host]:-}" ]; then
        has_model[$host]=yes
        packages "$host" runtime
        install -m 755 "$BATON" "$stage$exe"
        ln -s "$(realpath "$MODEL")" "$stage$lib/${MODEL##*/}"
        cp "$here/deploy/systemd/baton@.service" "$stage$ROOT/etc/systemd/system/"
    fi
    yaml "$name" >"$stage$etc/$name.yaml"
    echo "ROLE=${role_of[$name]}" >"$stage$etc/$name.env"
    [ -z "$CERTS" ] || install -m 640 "$CERTS/ca.crt" "$CERTS/$name.crt" "$CERTS/$name.key" "$stage$etc/"
    [ -z "$TOKENS" ] || [ "${role_of[$name]}" != coordinator ] || install -m 640 "$TOKENS" "$stage$etc/tokens"
}

install_etcd() {
    local name=$1 stage=$2
    packages "${host_of[$name]}" etcd
    cat >"$stage$ROOT/etc/systemd/system/baton-etcd.service" <<UNIT
[Unit]
Description=etcd for baton
After=network-online.target
[Service]
Type=notify
User=etcd
StateDirectory=etcd
Restart=always
ExecStart=/usr/bin/$(etcd_command "$name")
[Install]
WantedBy=multi-user.target
UNIT
}

install_one() {
    local name=$1 host=${host_of[$1]} stage
    stage=$(mktemp -d)
    mkdir -p "$stage$etc" "$stage$lib" "$stage${exe%/*}" "$stage$ROOT/etc/systemd/system"
    if [ "${role_of[$name]}" = etcd ]; then install_etcd "$name" "$stage"; else install_baton "$name" "$stage"; fi
    tar -C "$stage" --owner=0 --group=0 --no-overwrite-dir -ch . | $SSH "$host" tar -C / --no-overwrite-dir -x
    rm -r "$stage"
    [ -n "$ROOT" ] || on "$host" <<<"id baton >/dev/null 2>&1 || useradd --system --home $lib baton; chgrp -R baton $etc; systemctl daemon-reload"
}

# Plain processes, for ROOT: a pid file and a log each. The number may be another's by now, whose command does not name ROOT.
running() { echo "p=\$(cat $ROOT/run/$1.pid 2>/dev/null) && grep -qsF $ROOT /proc/\$p/cmdline"; }
plain_start() {
    local name=$1 role=${role_of[$1]} command ready="ready grpc="
    command="$exe $role --config $etc/$name.yaml"
    [ "$role" = etcd ] && command=$(etcd_command "$name") ready="serving client traffic"
    on "${host_of[$name]}" <<HOST || fail "$name did not start"
        if $(running "$name"); then echo "$name runs already, process \$p"; exit 0; fi
        mkdir -p $ROOT/log $ROOT/run $ROOT/var/lib/etcd; chmod 700 $ROOT/var/lib/etcd
        : >$ROOT/log/$name; BATON_CACHE_DIR=$ROOT/var/cache/baton setsid $command >>$ROOT/log/$name 2>&1 </dev/null & p=\$!
        echo \$p >$ROOT/run/$name.pid
        for i in \$(seq 600); do
            grep -q '$ready' $ROOT/log/$name && exit 0
            kill -0 \$p 2>/dev/null || break
            sleep 0.1
        done
        tail -5 $ROOT/log/$name >&2; exit 1
HOST
}
plain_stop() {
    on "${host_of[$1]}" <<HOST || fail "$1 did not stop"
        if $(running "$1"); then kill \$p; fi
        for i in \$(seq 600); do $(running "$1") || { rm -f $ROOT/run/$1.pid; exit 0; }; sleep 0.1; done; exit 1
HOST
}
unit() { [ "${role_of[$1]}" = etcd ] && echo baton-etcd || echo "baton@$1"; }


start_one() { if [ -n "$ROOT" ]; then plain_start "$1"; else on "${host_of[$1]}" <<<"systemctl enable --now $(unit "$1")"; fi; }
stop_one() { if [ -n "$ROOT" ]; then plain_stop "$1"; else on "${host_of[$1]}" <<<"systemctl disable --now $(unit "$1")"; fi; }
status_one() {
    local is
    if [ -n "$ROOT" ]; then is=$(on "${host_of[$1]}" <<<"if $(running "$1"); then echo active; else echo inactive; fi")
    else is=$(on "${host_of[$1]}" <<<"systemctl is-active $(unit "$1")") || true; fi
    printf '%-12s %-12s %-12s %-22s %s\n' "$1" "${host_of[$1]}" "${role_of[$1]}" "${address_of[$1]}" "$is"
}

# etcd members wait for each other, so they are started and stopped side by side.
each() {
    local roles=$1 what=$2 role name started pid
    for role in $roles; do
        started=
        for name in "${names[@]}"; do
            [ "${role_of[$name]}" = "$role" ] && { [ "$wanted" = "  " ] || [[ "$wanted" == *" $name "* ]]; } || continue
            if [ "$role" = etcd ] && [[ "$what" == start_one || "$what" == stop_one ]]; then "$what" "$name" & started+=" $!"; else "$what" "$name"; fi
        done
        for pid in $started; do wait "$pid"; done
    done
}
case "$action" in
install)
    for file in "$MODEL" "$BATON"; do [ -r "$file" ] || fail "$file (MODEL, BATON) is not there"; done
    each "etcd coordinator prefill decode" install_one ;;
start) each "etcd prefill decode coordinator" start_one ;;
stop) each "coordinator decode prefill etcd" stop_one ;;
status) each "etcd coordinator prefill decode" status_one ;;
*) fail "'$action': expected install, start, stop or status" ;;
esac
