package redisconn

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// slotReloader makes the client of a Cluster read the slots again after an error that may mean that
// they have moved. The client does so itself on MOVED, ASK and READONLY, and otherwise once a
// minute, but a failed master sends none of these. One reload runs at a time, asynchronously. The
// client's next attempt, some milliseconds later, uses its result.
type slotReloader struct{ client *redis.ClusterClient }

// reloadSlots adds a slotReloader to each node of the client, which must not have been used yet.
func reloadSlots(client redis.UniversalClient) {
	if cluster, ok := client.(*redis.ClusterClient); ok {
		cluster.OnNewNode(func(node *redis.Client) { node.AddHook(slotReloader{cluster}) })
	}
}

// DialHook returns next unchanged. A dial error is also the error of the command.
func (r slotReloader) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook reloads the slots if the command failed.
func (r slotReloader) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		// The reload's own commands are excluded, because a failed one would cause another
		// reload.
		if mayHaveMoved(err) && cmd.Name() != "cluster" {
			r.client.ReloadState(ctx)
		}
		return err
	}
}

// ProcessPipelineHook reloads the slots if the pipeline failed.
func (r slotReloader) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		if mayHaveMoved(err) {
			r.client.ReloadState(ctx)
		}
		return err
	}
}

// mayHaveMoved reports whether an error of a node may mean that another node has its slots: the
// node did not reply, or replied that it cannot serve them.
func mayHaveMoved(err error) bool {
	var reply redis.Error
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &reply):
		return redis.IsClusterDownError(err) || redis.IsMasterDownError(err) || redis.IsLoadingError(err)
	}
	return true
}
