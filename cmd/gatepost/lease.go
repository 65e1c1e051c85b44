package main

import "time"

// longestLease is the longest tokens.lease that there is.
const longestLease = time.Second

// envoyLease is for how long an Envoy is allowed to remember a decision where the definitions say tokens.lease. It is
// so much less that a revoke answers within tokens.lease: it waits until the last decision has ended by whichever clock is
// slower (a hundredth and 10 ms), and before that for the other gateways' word.
func envoyLease(lease time.Duration) time.Duration {
	const word = 15 * time.Millisecond
	granted := (lease - word - 10*time.Millisecond) * 100 / 101
	return max(granted, lease/2, 0)
}

// assumeLeases has revokes wait for what Envoys may remember that were there before this process: another one may
// have granted it. The definitions to start with say what comes after.
func (s *sidecar) assumeLeases() {
	if !s.settings.ownEnvoy {
		s.store.SetEnvoyLease(longestLease)
	}
}

// mayLease is for how long an Envoy may remember a decision by a look-up that begins now.
func (s *sidecar) mayLease() time.Duration { return s.store.EnvoyLease(time.Now()) }
