package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// coldTokens is the number of tokens that are used once at a gateway that has not seen them.
const coldTokens = 500

// redisGoal measures G7: the Redis commands per check without the module (--module off) and with
// the default.
func redisGoal(ctx context.Context, l *lab, _ func(string) bool) ([]finding, error) {
	var findings []finding
	for _, name := range []string{gateDefault, gateAsking} {
		warmed, err := l.warmChecks(ctx, name)
		if err != nil {
			return nil, err
		}
		findings = append(findings, warmed)
	}
	cold, err := l.coldTokens(ctx)
	return append(findings, cold), err
}

// warmChecks counts the commands to Redis while a gateway is under load.
func (l *lab) warmChecks(ctx context.Context, name string) (finding, error) {
	s, err := l.subject(ctx, name)
	if err != nil {
		return finding{}, err
	}
	if _, err := s.run(ctx, warm); err != nil {
		return finding{}, err
	}
	before, err := l.redisCounts(ctx)
	if err != nil {
		return finding{}, err
	}
	got, err := s.run(ctx, l.during)
	if err != nil {
		return finding{}, err
	}
	after, err := l.redisCounts(ctx)
	if err != nil {
		return finding{}, err
	}
	sets := after.sets - before.sets
	commands := after.commands - before.commands - sets
	return finding{
		Goal: "G7", What: strings.TrimSuffix(whatWarm, gateDefault) + name, Unit: "commands", Bound: atMost(0.01),
		Value: float64(commands) / float64(got.Requests),
		Note: fmt.Sprintf("%d commands for %d checks; and %d SETs for last_seen of %d tokens: at most one per minute and token, whatever the rate",
			commands, got.Requests, sets, warmTokens),
	}, nil
}

// coldTokens uses tokens of another gateway at a gateway that has just started, one after the
// other.
func (l *lab) coldTokens(ctx context.Context) (finding, error) {
	issuer := l.stack.gateways["gatepost-asking"]
	g, err := l.gatepost(ctx, "gatepost-cold", dataPath(l.stack.upstream), dbGatepost)
	if err != nil {
		return finding{}, err
	}
	defer l.end(g.process)
	var tokens []string
	for i := range coldTokens {
		token, err := login(ctx, issuer.url(), "cold-"+strconv.Itoa(i))
		if err != nil {
			return finding{}, err
		}
		tokens = append(tokens, token)
	}
	time.Sleep(2 * time.Second) // wait for the work that follows a login
	start, err := l.redisCounts(ctx)
	if err != nil {
		return finding{}, err
	}
	for _, token := range tokens {
		status, text, err := get(ctx, g.url()+"/orders/5", "Authorization: "+token)
		if err != nil {
			return finding{}, err
		}
		if status != http.StatusOK {
			return finding{}, fmt.Errorf("showing a cold token: %w: %d %s", errWrong, status, text)
		}
	}
	end, err := l.redisCounts(ctx)
	if err != nil {
		return finding{}, err
	}
	sets := end.sets - start.sets
	commands := end.commands - start.commands - sets
	return finding{
		Goal: "G7", What: whatCold, Unit: "round trips", Bound: atMost(1),
		Value: float64(commands) / coldTokens,
		Note: fmt.Sprintf("%d commands for %d tokens, used one after the other; and %d SETs for last_seen, which are written later and delay no request",
			commands, coldTokens, sets),
	}, nil
}

// upkeep are the commands for the connections between gateways and Redis. Neither lookups nor
// logins send them.
var upkeep = []string{"info", "hello", "client", "ping", "role", "publish", "subscribe"}

// redisCounts is the number of commands in Redis' statistics, without the upkeep, and the number of
// SETs among them. A check that only reads has no SET.
type redisCounts struct{ commands, sets int }

func (l *lab) redisCounts(ctx context.Context) (redisCounts, error) {
	text, err := l.stack.redis.client(dbOther).Info(ctx, "commandstats").Result()
	if err != nil {
		return redisCounts{}, fmt.Errorf("reading Redis' statistics: %w", err)
	}
	return parseCounts(text), nil
}

func parseCounts(info string) redisCounts {
	var c redisCounts
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		command, isCommand := strings.CutPrefix(name, "cmdstat_")
		name, _, _ = strings.Cut(command, "|") // client|tracking
		if !isCommand || slices.Contains(upkeep, name) {
			continue
		}
		calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		n, _ := strconv.Atoi(calls)
		c.commands += n
		if command == "set" {
			c.sets += n
		}
	}
	return c
}
