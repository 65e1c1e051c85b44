package definitions

import "context"

// Reloads are requests to read definitions now. The loop that reads receives them, and closes each when it has reported
// the result. [Watcher] has such a loop, and so has the follower of revisions.
type Reloads chan chan<- struct{}

// Reload has the loop read now, and returns when the result was reported, or when ctx ends. A problem is reported even
// if it was reported before. Reload is safe for concurrent use, also before the loop runs.
func (r Reloads) Reload(ctx context.Context) {
	done := make(chan struct{})
	select {
	case r <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}
