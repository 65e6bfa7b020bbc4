#!/bin/sh
# HAProxy with its statistics bound to this machine alone: Ray Serve's configuration has them on every interface and no
# setting for that. Takes HAProxy's own arguments; CACHEWARDEN_HAPROXY is the program.
set -eu
previous=
for argument in "$@"; do
  if [ "$previous" = "-f" ]; then
    sed -i 's/^\([[:space:]]*bind[[:space:]]\{1,\}\)\*\{0,1\}:/\1127.0.0.1:/' "$argument"
  fi
  previous=$argument
done
exec "$CACHEWARDEN_HAPROXY" "$@"
