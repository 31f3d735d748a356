#!/bin/sh
# serve.sh PREFIX PROGRAM: runs PROGRAM ADDRESS against the gradclip-server installed under PREFIX.
# Everything it writes beside the output is in PREFIX.
set -eu
: >"$1/listening"
"$1/bin/gradclip-server" --listen=127.0.0.1:0 --memory-socket="$1/memory" >>"$1/listening" 2>"$1/log" &
server=$!
trap 'kill $server; wait $server' EXIT
until read -r line <"$1/listening"; do
  kill -0 $server # or it has ended, and so does this
done
address=${line#listening on }
"$1/bin/gradclip" health --server "$address"
"$2" "$address"
