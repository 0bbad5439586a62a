#!/bin/sh
# Network namespaces with different addresses and nothing else: `netns.sh up NAME` makes NAME-driver (10.77.0.1) and
# NAME-nodes (10.77.0.2), joined by a cable; `netns.sh up NAME N` makes NAME-driver and NAME-node1 (10.77.0.2) to
# NAME-nodeN, joined by a bridge; `netns.sh down NAME` removes them.
set -eu
a="$2-driver"
b="$2-nodes"
case "$1" in
up)
    ip netns add "$a"
    ip -n "$a" link set lo up
    if [ $# -gt 2 ]; then
        ip -n "$a" link add hub type bridge
        ip -n "$a" addr add 10.77.0.1/24 dev hub
        ip -n "$a" link set hub up
        for n in $(seq "$3"); do
            node="$2-node$n"
            ip netns add "$node"
            ip -n "$a" link add "port$n" type veth peer name cable netns "$node"
            ip -n "$a" link set "port$n" master hub up
            ip -n "$node" addr add "10.77.0.$((n + 1))/24" dev cable
            ip -n "$node" link set lo up
            ip -n "$node" link set cable up
        done
        exit 0
    fi
    ip netns add "$b"
    # The names of the cable's ends exist inside the namespaces only.
    ip -n "$a" link add cable type veth peer name cable netns "$b"
    ip -n "$a" addr add 10.77.0.1/24 dev cable
    ip -n "$b" addr add 10.77.0.2/24 dev cable
    ip -n "$a" link set cable up
    ip -n "$b" link set lo up
    ip -n "$b" link set cable up
    ;;
down)
    for space in $(ip netns list | sed 's/ .*//'); do
        case "$space" in
        "$a" | "$b" | "$2-node"*) ip netns del "$space" 2>/dev/null || true ;;
        esac
    done
    ;;
esac
