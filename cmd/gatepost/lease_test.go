package main

import (
	"testing"
	"time"
)

// TestEnvoyIsAllowedLessThanTheLease: so that a revoke, which waits longer than what was allowed, answers within it.
func TestEnvoyIsAllowedLessThanTheLease(t *testing.T) {
	for lease := time.Duration(0); lease <= longestLease; lease += 5 * time.Millisecond {
		allowed := envoyLease(lease)
		if allowed < lease/2 || allowed > lease || lease == 0 && allowed != 0 {
			t.Errorf("tokens.lease %v: Envoy is allowed %v", lease, allowed)
		}
		// The cache waits for a hundredth and 10 ms more (cache.Alone, cache.Redis).
		if waits := allowed + allowed/100 + 10*time.Millisecond; lease >= 50*time.Millisecond && waits > lease {
			t.Errorf("tokens.lease %v: a revoke takes %v", lease, waits)
		}
	}
	if got := envoyLease(longestLease); got < 950*time.Millisecond {
		t.Errorf("tokens.lease %v: Envoy is allowed %v", longestLease, got)
	}
}
