package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The stream is what go test -json of Go 1.26 prints, shortened.
const stream = `
{"Action":"start","Package":"p/a"}
{"Action":"run","Package":"p/a","Test":"TestOne"}
{"Action":"output","Package":"p/a","Test":"TestOne","Output":"=== RUN   TestOne\n"}
{"Action":"pass","Package":"p/a","Test":"TestOne","Elapsed":7.5}
{"Action":"output","Package":"p/a","Test":"TestTwo/row","Output":"    a_test.go:9: got 1, want 2\n"}
{"Action":"fail","Package":"p/a","Test":"TestTwo/row","Elapsed":0.1}
{"Action":"output","Package":"p/a","Test":"TestThree","Output":"=== RUN   TestThree\n"}
{"Action":"output","Package":"p/a","Test":"TestThree","Output":"    a_test.go:20: needs root\n"}
{"Action":"output","Package":"p/a","Test":"TestThree","Output":"--- SKIP: TestThree (0.00s)\n"}
{"Action":"skip","Package":"p/a","Test":"TestThree","Elapsed":0}
{"Action":"fail","Package":"p/a","Elapsed":8}
{"ImportPath":"p/b [p/b.test]","Action":"build-output","Output":"b.go:3:1: syntax error\n"}
{"ImportPath":"p/b [p/b.test]","Action":"build-fail"}
{"Action":"output","Package":"p/b","Output":"FAIL\tp/b [build failed]\n"}
{"Action":"fail","Package":"p/b","Elapsed":0,"FailedBuild":"p/b [p/b.test]"}
{"Action":"output","Package":"p/c","Test":"TestHang","Output":"panic: test timed out\n"}
{"Action":"fail","Package":"p/c","Elapsed":60}
{"Action":"skip","Package":"p/d","Elapsed":0}
not json
`

func TestStream(t *testing.T) {
	var out bytes.Buffer
	totals := newTotals(&out)
	totals.read(strings.NewReader(strings.TrimPrefix(stream, "\n")))
	totals.summary()
	require.Equal(t, `
FAIL: p/a TestTwo/row
    a_test.go:9: got 1, want 2

FAIL  p/a (3 tests, 8.0s)
b.go:3:1: syntax error

FAIL	p/b [build failed]
FAIL  p/b (0 tests, 0.0s)

panic: test timed out
FAIL  p/c (0 tests, 60.0s)
-     p/d (no tests)
not json

Slow tests:
     7.5s p/a TestOne

NOT TESTED: 1 skipped
  SKIP p/a TestThree: a_test.go:20: needs root

1 passed, 3 failed, 1 skipped
`, out.String())
}

func TestCommands(t *testing.T) {
	for _, row := range []struct {
		name, script, want string
	}{
		{"all passed", `echo '{"Action":"pass","Package":"p","Test":"T"}'`, "\n1 passed, 0 failed, 0 skipped\n"},
		{"nothing ran", "true", "FAIL: no test ran\n\n0 passed, 1 failed, 0 skipped\n"},
		{"failed before any test", "exit 3", "FAIL: running sh: exit status 3\n\n0 passed, 1 failed, 0 skipped\n"},
		{"failed after a test", `echo '{"Action":"pass","Package":"p","Test":"T"}'; exit 1`, "FAIL: running sh: exit status 1\n\n1 passed, 1 failed, 0 skipped\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out bytes.Buffer
			totals := newTotals(&out)
			totals.run([]string{"sh", "-c", row.script})
			totals.summary()
			require.Equal(t, "$ sh -c "+row.script+"\n"+row.want, out.String())
		})
	}
}

func TestAgain(t *testing.T) {
	for _, row := range []struct {
		name, first, second, want string
	}{
		{"an accident", "got 1, want 2", "pass", "UNSTABLE: 1 failed, and passed when run again alone. Mend them:\n  UNSTABLE p T\n\n2 passed, 0 failed, 0 skipped\n"},
		{"broken", "got 1, want 2", "fail", "0 passed, 2 failed, 0 skipped\n"},
		{"a panic", "panic: nil map", "pass", "0 passed, 2 failed, 0 skipped\n"},
		{"a data race", "WARNING: DATA RACE", "pass", "0 passed, 2 failed, 0 skipped\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			// The script fails as go test does, until it is asked for the one test.
			script := filepath.Join(t.TempDir(), "test")
			require.NoError(t, os.WriteFile(script, fmt.Appendf(nil, `#!/bin/sh
case "$*" in
*"-count=1 -run=^T$ p") echo '{"Action":"%s","Package":"p","Test":"T"}' ;;
*) cat <<'END'
{"Action":"output","Package":"p","Test":"T/row","Output":"%s\n"}
{"Action":"fail","Package":"p","Test":"T/row"}
{"Action":"fail","Package":"p","Test":"T"}
END
   exit 1 ;;
esac
`, row.second, row.first), 0o700))
			var out bytes.Buffer
			totals := newTotals(&out)
			totals.run([]string{script, "-json", "./..."})
			totals.again([]string{script, "-json", "./..."})
			totals.summary()
			require.True(t, strings.HasSuffix(out.String(), "\n"+row.want), out.String())
		})
	}
}
