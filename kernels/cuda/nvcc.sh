#!/bin/sh
# nvcc.sh REPORT COMMAND...: runs a compiler; what ptxas says of registers and spills goes to REPORT, all
# else to stderr.
report=$1
shift
"$@" 2>"$report.all"
status=$?
grep -E '^ptxas info|bytes stack frame' "$report.all" >"$report"
grep -vE '^ptxas info|bytes stack frame' "$report.all" >&2
rm -f "$report.all"
exit $status
