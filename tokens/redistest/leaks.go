package redistest

import (
	"testing"

	"go.uber.org/goleak"
)

// VerifyTestMain runs the tests of a package that uses go-redis, and fails it
// where goroutines are left over. It waits longer for them than goleak by
// itself, which gives up after about as long as go-redis needs: a pool that
// could not dial tries again each second in a goroutine that finds out that
// its pool was closed only after that second's sleep. A pool that nobody
// closed is still found.
func VerifyTestMain(m *testing.M) { goleak.VerifyTestMain(patient{m}) }

type patient struct{ m *testing.M }

func (p patient) Run() int {
	code := p.m.Run()
	for try := 0; try < 5 && code == 0 && goleak.Find() != nil; try++ {
	}
	return code
}
