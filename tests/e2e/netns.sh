#!/bin/sh
# Two network namespaces joined by a cable, with different addresses and nothing else: `netns.sh up NAME` makes
# NAME-driver (10.77.0.1) and NAME-nodes (10.77.0.2), `netns.sh down NAME` removes them.
set -eu
a="$2-driver"
b="$2-nodes"
case "$1" in
up)
    ip netns add "$a"
    ip netns add "$b"
    # The names of the cable's ends exist inside the namespaces only.
    ip -n "$a" link add cable type veth peer name cable netns "$b"
    ip -n "$a" addr add 10.77.0.1/24 dev cable
    ip -n "$b" addr add 10.77.0.2/24 dev cable
    for n in "$a" "$b"; do
        ip -n "$n" link set lo up
        ip -n "$n" link set cable up
    done
    ;;
down)
    ip netns del "$a" 2>/dev/null || true
    ip netns del "$b" 2>/dev/null || true
    ;;
esac
