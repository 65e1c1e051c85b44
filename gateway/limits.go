package gateway

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/ratelimit"
	"gatepost/redisconn"
)

// clusterLimits counts requests for the limits of all gateways. Its connections to Redis are not those of the token
// store, so that a flood of requests for a public service delays no look-up of a token.
type clusterLimits struct {
	*ratelimit.Server
	conn *redisconn.Conn
}

// openClusterLimits returns nil if there is no Redis.
func openClusterLimits(c Config, registry prometheus.Registerer) (*clusterLimits, error) {
	if c.Redis == nil {
		return nil, nil
	}
	conn := redisconn.Open(c.Redis)
	server, err := ratelimit.New(ratelimit.Config{Client: conn.Client(), Logger: c.Logger, Registerer: registry})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &clusterLimits{server, conn}, nil
}
