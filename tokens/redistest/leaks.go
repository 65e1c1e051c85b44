package redistest

import (
	"testing"

	"go.uber.org/goleak"
)

// VerifyTestMain runs the tests of a package that uses go-redis and fails if goroutines remain. It
// waits longer than goleak does by default, which is about as long as go-redis needs: a pool that
// cannot dial retries each second, and its goroutine checks only after the sleep whether the pool
// is closed. A pool that was not closed is still detected.
func VerifyTestMain(m *testing.M) { goleak.VerifyTestMain(retryingMain{m}) }

type retryingMain struct{ m *testing.M }

func (p retryingMain) Run() int {
	code := p.m.Run()
	for try := 0; try < 5 && code == 0 && goleak.Find() != nil; try++ {
	}
	return code
}
