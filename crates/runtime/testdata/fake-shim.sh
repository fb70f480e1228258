#!/bin/sh
# A shim program for tests: its verbs, without a shim. The test serves the task API itself.
# FAKE_DIR is a directory of the test: `answer` is printed by start, `exit` by delete; a file
# `fail` makes start fail with its text; what the verbs were given is left in `log` and `stdin`.
for argument; do verb=$argument; done
case $verb in
-v)
    printf 'fake:\n  Version: %s\n' "$(cat "$FAKE_DIR/version" 2>/dev/null || echo 1.6.20)"
    ;;
start)
    echo "start $NAMESPACE $(pwd)" >>"$FAKE_DIR/log"
    cat >"$FAKE_DIR/stdin"
    if [ -e "$FAKE_DIR/fail" ]; then
        cat "$FAKE_DIR/fail" >&2
        exit 1
    fi
    cat "$FAKE_DIR/answer"
    ;;
delete)
    echo "delete $NAMESPACE $(pwd)" >>"$FAKE_DIR/log"
    cat "$FAKE_DIR/exit"
    ;;
*)
    exit 2
    ;;
esac
