// Package testrun decides in which of the two runs of tools/test a test is: with the race detector, or without it. It
// is for packages that have tests of both kinds. Outside make test all of their tests run.
package testrun

import (
	"os"
	"testing"
)

// Racing skips a test in the run without the race detector. It is for tests of what happens at the same time.
func Racing(t testing.TB) {
	t.Helper()
	in(t, "racing")
}

// Plain skips a test in the run with the race detector, which would make it slower and find nothing: the test computes,
// or looks at another program from outside.
func Plain(t testing.TB) {
	t.Helper()
	in(t, "plain")
}

// in skips a test in another run than this one. tools/test sets the variable.
func in(t testing.TB, run string) {
	t.Helper()
	if this := os.Getenv("GATEPOST_TESTS"); this != "" && this != run {
		t.Skip("this test is of the other run of tools/test")
	}
}
