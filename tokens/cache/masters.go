package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
)

// master is one server whose keys are tracked.
type master struct {
	// node is its id in a cluster, and empty elsewhere.
	node string
	// peers are the ids of all masters of the cluster, itself included, as clusterMasters gives them.
	peers string
	// name is its address for the log.
	name string
	dial func(ctx context.Context) (net.Conn, error)
	// led is the data connections of a client that Sentinel leads, and nil elsewhere.
	led         *led
	credentials func(ctx context.Context) (user, password string, err error)
}

// findMasters returns a function that says which servers hold the keys now: the ones that client talks to, with
// its way of dialling. Where Sentinel leads the client, sentinels must name the master.
func findMasters(client redis.UniversalClient, sentinels Sentinels) (func(context.Context) ([]master, error), error) {
	switch client := client.(type) {
	case *redis.Client:
		o := client.Options()
		if o.StreamingCredentialsProvider != nil {
			return nil, errors.New("tracking Redis with streaming credentials is not supported")
		}
		credentials := credentials(o.Username, o.Password, o.CredentialsProvider, o.CredentialsProviderContext)
		if o.Addr == failoverClient {
			if sentinels == nil {
				return nil, errors.New("tracking Redis behind Sentinel needs the Sentinels")
			}
			led := follow(client)
			return func(ctx context.Context) ([]master, error) {
				name, err := named(ctx, sentinels)
				if err != nil {
					return nil, err
				}
				dial := func(ctx context.Context) (net.Conn, error) { return sentinels.Dial(ctx, name) }
				return []master{{name: name, dial: dial, led: led, credentials: credentials}}, nil
			}, nil
		}
		one := []master{{
			name:        o.Addr,
			dial:        func(ctx context.Context) (net.Conn, error) { return o.Dialer(ctx, o.Network, o.Addr) },
			credentials: credentials,
		}}
		return func(context.Context) ([]master, error) { return one, nil }, nil
	case *redis.ClusterClient:
		return func(ctx context.Context) ([]master, error) { return findClusterMasters(ctx, client) }, nil
	}
	return nil, fmt.Errorf("tracking Redis through a %T is not supported", client)
}

// credentials reads them in go-redis' order of precedence, anew for each connection.
func credentials(user, password string, provide func() (string, string),
	provideContext func(context.Context) (string, string, error),
) func(context.Context) (string, string, error) {
	return func(ctx context.Context) (string, string, error) {
		switch {
		case provideContext != nil:
			return provideContext(ctx)
		case provide != nil:
			user, password := provide()
			return user, password, nil
		}
		return user, password, nil
	}
}

func findClusterMasters(ctx context.Context, client *redis.ClusterClient) ([]master, error) {
	nodes, err := client.ClusterNodes(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("asking for the masters (CLUSTER NODES): %w", err)
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
		masters = append(masters, master{
			node:        node.id,
			peers:       peers,
			name:        address,
			dial:        func(ctx context.Context) (net.Conn, error) { return dial(ctx, "tcp", address) },
			credentials: credentials(o.Username, o.Password, o.CredentialsProvider, o.CredentialsProviderContext),
		})
	}
	if len(masters) == 0 {
		return nil, errors.New("the cluster has no master")
	}
	return masters, nil
}

type clusterNode struct{ id, address string }

// clusterNodes yields the masters of the answer to CLUSTER NODES (redis.io/commands/cluster-nodes) that are not
// known to be gone. Masters without slots are among them: they can be given some at any moment.
func clusterNodes(nodes string) func(yield func(clusterNode) bool) {
	return func(yield func(clusterNode) bool) {
		for line := range strings.Lines(nodes) {
			fields := strings.Fields(line)
			if len(fields) < 8 {
				continue
			}
			flags := strings.Split(fields[2], ",")
			gone := slices.ContainsFunc(flags, func(f string) bool { return f == "fail" || f == "noaddr" || f == "handshake" })
			if gone || !slices.Contains(flags, "master") {
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

// clusterMasters returns the ids of the masters in one text that is the same for the same masters, and the id of
// the answering node where it is one.
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
