package shield

import (
	"sync"
	"time"
)

// BreakerSettings configures the circuit breaker of the user service.
type BreakerSettings struct {
	// Failures is the number of consecutive unanswered logins that opens the breaker; 0: it never
	// opens.
	Failures int
	// Pause is how long the breaker stays open at first. Then one login probes the user service.
	// Each failed probe doubles the pause.
	Pause time.Duration
	// Cap is the longest pause.
	Cap time.Duration
}

// breaker is a circuit breaker. It is closed after few consecutive failures, then open until its
// pause ends, then half open for one probe. Only consecutive failures count, so one client with
// failing logins cannot open it while other logins succeed.
type breaker struct {
	mu       sync.Mutex
	failures int // consecutive failures
	pause    time.Duration
	until    time.Time
	probing  bool
}

// admit returns how long a login has to wait. If it need not wait, admit returns whether it is the
// probe.
func (b *breaker) admit(set BreakerSettings, now time.Time) (wait time.Duration, probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if set.Failures <= 0 || b.pause == 0 {
		return 0, false
	}
	if wait := b.until.Sub(now); wait > 0 {
		return wait, false
	}
	if b.probing {
		return set.Pause, false
	}
	b.probing = true
	return 0, true
}

// record records the outcome of a login.
func (b *breaker) record(set BreakerSettings, now time.Time, o Outcome, probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe {
		b.probing = false
	}
	switch o {
	case Opened, Refused:
		b.failures, b.pause = 0, 0
	case Unanswered:
		b.failures++
		open := b.pause > 0
		if set.Failures <= 0 || !open && b.failures < set.Failures || open && !probe {
			return // late failures of a burst do not extend the pause
		}
		b.pause = min(max(set.Pause, 2*b.pause), set.Cap)
		b.until = now.Add(b.pause)
	}
}
