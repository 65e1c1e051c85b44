package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"gatepost/tokens"

	"github.com/redis/go-redis/v9"
)

// routes watches where the client of a Cluster sends its commands. The lease vouches only for the
// tracked masters, but after a fail-over the client may reach the new master before the tracking
// does. So the first reply about a token from an untracked node ends the tracking before the reply
// is used: what was read there is not kept, and what was changed there is waited out, because other
// gateways may not have received an invalidation.
type routes struct {
	tracked atomic.Pointer[trackedNodes]
}

// trackedNodes are the addresses of the tracked masters, as the client uses them.
type trackedNodes struct {
	addrs map[string]bool
	moved func() // ends the tracking, once
}

// watchRoutes watches the commands of client, which must not have been used yet.
func watchRoutes(client *redis.ClusterClient) *routes {
	r := &routes{}
	client.OnNewNode(func(node *redis.Client) { node.AddHook(route{r, node.Options().Addr}) })
	return r
}

// pin registers moved, which is called if a node other than those of conns replies about a token.
func (r *routes) pin(conns []*conn, moved func()) {
	addrs := make(map[string]bool, len(conns))
	for _, c := range conns {
		addrs[c.master.name] = true
	}
	r.tracked.Store(&trackedNodes{addrs, sync.OnceFunc(moved)})
}

// unpin removes what pin registered.
func (r *routes) unpin() { r.tracked.Store(nil) }

// route is the hook on the client of one node.
type route struct {
	routes *routes
	addr   string
}

// replied checks the node after its reply to a command. Error replies carry no data, so they are
// ignored.
func (r route) replied(command redis.Cmder, err error) {
	if err != nil && !errors.Is(err, redis.Nil) {
		return
	}
	if tracked := r.routes.tracked.Load(); tracked != nil && !tracked.addrs[r.addr] && r.routes.isAboutToken(command) {
		tracked.moved()
	}
}

func (r *routes) isAboutToken(command redis.Cmder) bool {
	return slices.ContainsFunc(command.Args(), func(arg any) bool {
		text, ok := arg.(string)
		return ok && strings.HasPrefix(text, tokens.RedisPrefix)
	})
}

// DialHook returns next unchanged.
func (r route) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook checks the node of a command.
func (r route) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		err := next(ctx, command)
		r.replied(command, err)
		return err
	}
}

// ProcessPipelineHook checks the node of the commands of a pipeline.
func (r route) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		err := next(ctx, commands)
		for _, command := range commands {
			r.replied(command, command.Err())
		}
		return err
	}
}

// findClusterMasters queries the masters that client knows. Their replies also name the masters
// without slots, which client does not know.
func findClusterMasters(ctx context.Context, client *redis.ClusterClient, routes *routes) ([]master, error) {
	var mu sync.Mutex
	var nodes string
	known := map[string]string{} // the addresses that client uses, by node id
	err := client.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		reply, err := node.ClusterNodes(ctx).Result()
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		_, id := clusterMasters(reply)
		nodes, known[id] = reply, node.Options().Addr
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("querying the masters (CLUSTER NODES): %w", err)
	}
	o := client.Options()
	dial := o.Dialer
	if dial == nil {
		dial = redis.NewDialer(&redis.Options{DialTimeout: o.DialTimeout, TLSConfig: o.TLSConfig})
	}
	peers, _ := clusterMasters(nodes)
	var masters []master
	for node := range clusterNodes(nodes) {
		address := node.address
		if used, ok := known[node.id]; ok {
			address = used
		}
		masters = append(masters, master{
			node:        node.id,
			peers:       peers,
			name:        address,
			dial:        func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", address) },
			routes:      routes,
			credentials: credentials(o.Username, o.Password, o.CredentialsProvider, o.CredentialsProviderContext),
		})
	}
	if len(masters) == 0 {
		return nil, errors.New("the cluster has no master")
	}
	return masters, nil
}

type clusterNode struct{ id, address string }

// clusterNodes yields the masters in a reply to CLUSTER NODES (redis.io/commands/cluster-nodes),
// except failed ones. Masters without slots are included, because they can receive slots at any
// time.
func clusterNodes(nodes string) func(yield func(clusterNode) bool) {
	return func(yield func(clusterNode) bool) {
		for line := range strings.Lines(nodes) {
			fields := strings.Fields(line)
			if len(fields) < 8 {
				continue
			}
			flags := strings.Split(fields[2], ",")
			failed := slices.ContainsFunc(flags, func(f string) bool { return f == "fail" || f == "noaddr" || f == "handshake" })
			if failed || !slices.Contains(flags, "master") {
				continue
			}
			// ip:port@bus[,hostname[,…]]
			address, _, _ := strings.Cut(fields[1], "@")
			if !yield(clusterNode{fields[0], address}) {
				return
			}
		}
	}
}

// clusterMasters returns the sorted ids of the masters as one text, and the id of the answering
// node.
func clusterMasters(nodes string) (ids, myself string) {
	var all []string
	for node := range clusterNodes(nodes) {
		all = append(all, node.id)
	}
	for line := range strings.Lines(nodes) {
		fields := strings.Fields(line)
		if len(fields) > 2 && slices.Contains(strings.Split(fields[2], ","), "myself") {
			myself = fields[0]
		}
	}
	slices.Sort(all)
	return strings.Join(all, " "), myself
}
