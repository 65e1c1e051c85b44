package shield

import (
	"sync"
	"time"
)

// BreakerSettings says when a user service that does not answer is left alone.
type BreakerSettings struct {
	// Failures is how many logins in a row go unanswered before it is; 0: it never is.
	Failures int
	// Pause is for how long at first. After it one login is let through to try; while those fail too the
	// pause doubles.
	Pause time.Duration
	// Cap is the longest pause.
	Cap time.Duration
}

// breaker is a circuit breaker: closed while failures in a row are few, then open until its pause is over,
// then half open for one probe. Only failures in a row count, so one client whose logins fail cannot open it while others' succeed.
type breaker struct {
	mu       sync.Mutex
	failures int // in a row
	pause    time.Duration
	until    time.Time
	probing  bool
}

// admit says how long a login has to wait, and otherwise whether it is the probe.
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

// settle takes in what came of a login.
func (b *breaker) settle(set BreakerSettings, now time.Time, o Outcome, probe bool) {
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
			return // the stragglers of a burst do not lengthen the pause
		}
		b.pause = min(max(set.Pause, 2*b.pause), set.Cap)
		b.until = now.Add(b.pause)
	}
}
