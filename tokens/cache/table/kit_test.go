package table_test

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"gatepost/tokens"
	"gatepost/tokens/cache/table"
	"gatepost/tokens/cache/table/tabletest"
)

// clock is the time of both the writer and the module.
type clock struct{ table.Instant }

func (c *clock) now() table.Instant { return c.Instant }

// rule identifies the rule in these tests; route returns the configuration of a route with it.
var rule = [16]byte{0: 0xab, 15: 0xcd}

func route(longest time.Duration, flags string) string {
	return fmt.Sprintf("route 1 %x %d %s x-user-id %016x", rule, longest.Milliseconds(), flags, table.ServiceID("orders"))
}

func hash(token string) tokens.Hash { return sha256.Sum256([]byte(token)) }

// fixture is a table and a module that reads it, on one clock.
type fixture struct {
	*tabletest.Driver
	t     testing.TB
	clock *clock
	table *table.Table
	path  string
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	return newFixtureOf(t, tabletest.Start(t))
}

func newFixtureOf(t testing.TB, driver *tabletest.Driver) *fixture {
	t.Helper()
	noon := table.Instant{Boot: 1000 * time.Second, Wall: time.Unix(1_800_000_000, 0)}
	r := &fixture{Driver: driver, t: t, clock: &clock{noon}, path: filepath.Join(t.TempDir(), "table")}
	r.create()
	r.At(noon)
	r.Must("config %s", r.path)
	r.Route(rule, 5*time.Minute, "-")
	return r
}

// create creates a new table with a lease of a second.
func (r *fixture) create() {
	r.t.Helper()
	made, err := table.Create(r.path, 1024, r.clock.now)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = made.Close() })
	r.table = made
	r.extend()
}

func (r *fixture) extend() { r.table.Extend(r.clock.Add(time.Second)) }

// advance moves the clock and extends the lease.
func (r *fixture) advance(d time.Duration) {
	r.clock.Instant = r.clock.Add(d)
	r.extend()
	r.At(r.clock.Instant)
}

// entry returns a decision about alice's token in Authorization, which expires in an hour.
func (r *fixture) entry() *table.Entry {
	return &table.Entry{
		Rule: rule, Inputs: [4]string{"Bearer alice-token"}, Token: hash("alice-token"), User: "alice",
		Expires: r.clock.Wall.Add(time.Hour),
	}
}

const alice = "authorization=Bearer alice-token"

// scopeHeader is the header of scopes, which the module removes from a request (package xds).
const scopeHeader = "x-forwarded-host"
