#!/usr/bin/env bash
# Runs orders through the declared saga of order.yaml while each of the four processes is killed with
# -9 again and again and the services lose answers, then audits the three databases. Exit code 0 only
# if every order is complete in all three or undone in all three.
#   examples/orders/storm.sh [ORDERS] [FOLDER]     (100 orders, a new temporary folder)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

count="${1:-100}"
folder="${2:-$(mktemp -d)}"
cargo build --release --quiet -p rallypoint-cli -p orders-example
bin="${CARGO_TARGET_DIR:-target}/release"
server=http://127.0.0.1:7080
mkdir -p "$folder"
echo "in $folder"

declare -A pids=()
run() { # NAME: starts it
    case "$1" in
    serve) "$bin/rallypoint" serve --dir "$folder/store" --sagas examples/orders --listen 127.0.0.1:7080 >>"$folder/serve.log" 2>&1 & ;;
    inventory) "$bin/orders-example" inventory --db "$folder/inventory.db" --listen 127.0.0.1:7001 --chaos 0.05 >>"$folder/services.log" 2>&1 & ;;
    payment) "$bin/orders-example" payment --db "$folder/payment.db" --listen 127.0.0.1:7002 --chaos 0.05 >>"$folder/services.log" 2>&1 & ;;
    shipping) "$bin/orders-example" shipping --db "$folder/shipping.db" --listen 127.0.0.1:7003 --chaos 0.05 >>"$folder/services.log" 2>&1 & ;;
    esac
    pids[$1]=$!
}
end() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait
}
trap end EXIT

names=(serve inventory payment shipping)
for name in "${names[@]}"; do run "$name"; done
"$bin/orders-example" make-orders "$count" "$folder/orders.jsonl"

started=0
kills=0
while read -r order; do
    id="$(sed 's/.*"id":"\([^"]*\)".*/\1/' <<<"$order")"
    # The key names the saga: a start whose answer was lost is repeated.
    tries=0
    until "$bin/rallypoint" saga start order "$order" --key "$id" --server "$server" >>"$folder/starts.log" 2>&1; do
        tries=$((tries + 1))
        if ((tries > 100)); then
            echo "order $id could not be started: see $folder/starts.log" >&2
            exit 1
        fi
        sleep 0.1
    done
    started=$((started + 1))
    if ((started % 5 == 0)); then
        name="${names[kills % 4]}"
        kill -9 "${pids[$name]}"
        wait "${pids[$name]}" 2>/dev/null || true
        run "$name"
        kills=$((kills + 1))
        echo "started $started of $count, killed $name ($kills kills)"
    fi
done <"$folder/orders.jsonl"

unfinished=-1
for _ in $(seq 300); do
    unfinished=0
    for status in running waiting compensating paused stuck; do
        # One that cannot be asked for is not finished.
        list="$("$bin/rallypoint" saga list --status "$status" --limit 500 --json --server "$server" || echo '"id"')"
        found="$(grep -o '"id"' <<<"$list" | wc -l || true)"
        unfinished=$((unfinished + found))
    done
    if ((unfinished == 0)); then break; fi
    sleep 1
done
echo "$started started, $kills kills, $unfinished unfinished"
"$bin/orders-example" audit --inventory "$folder/inventory.db" --payment "$folder/payment.db" --shipping "$folder/shipping.db"
((unfinished == 0))
