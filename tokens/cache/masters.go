package cache

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/redis/go-redis/v9"
)

// master is one tracked server.
type master struct {
	// node is its id in a cluster; empty otherwise.
	node string
	// peers are the ids of all masters of the cluster, its own included, as returned by
	// clusterMasters.
	peers string
	// name is its address, for the log.
	name string
	dial func(ctx context.Context) (net.Conn, error)
	// data holds the data connections of a client behind Sentinel; nil otherwise.
	data *dataConns
	// routes watches the commands of a cluster client; nil otherwise.
	routes      *routes
	credentials func(ctx context.Context) (user, password string, err error)
}

// findMasters returns a function that lists the servers that hold the keys now, with client's way
// of dialling. Behind Sentinel, sentinels must name the master.
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
			data := follow(client)
			return func(ctx context.Context) ([]master, error) {
				name, err := named(ctx, sentinels)
				if err != nil {
					return nil, err
				}
				dial := func(ctx context.Context) (net.Conn, error) { return sentinels.Dial(ctx, name) }
				return []master{{name: name, dial: dial, data: data, credentials: credentials}}, nil
			}, nil
		}
		one := []master{{
			name:        o.Addr,
			dial:        func(ctx context.Context) (net.Conn, error) { return o.Dialer(ctx, o.Network, o.Addr) },
			credentials: credentials,
		}}
		return func(context.Context) ([]master, error) { return one, nil }, nil
	case *redis.ClusterClient:
		routes := watchRoutes(client)
		return func(ctx context.Context) ([]master, error) { return findClusterMasters(ctx, client, routes) }, nil
	}
	return nil, fmt.Errorf("tracking Redis through a %T is not supported", client)
}

// credentials returns a function that reads the credentials in go-redis' order of precedence, once
// per connection.
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
