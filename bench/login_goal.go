package main

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// loginUsers is the number of users that log in, in turn.
const loginUsers = 5000

// The gateways for the comparison of logins.
const (
	loginGatepost = "gatepost, POST /token"
	loginNode     = "node gateway with keep-alive, POST /token"
)

// loginGoal measures G11. All gateways use the same nginx as user service, which accepts every
// login.
func loginGoal(ctx context.Context, l *lab, _ func(string) bool) ([]finding, error) {
	store, err := l.redis(ctx)
	if err != nil {
		return nil, err
	}
	up, err := l.upstream(ctx)
	if err != nil {
		return nil, err
	}
	g, err := l.gatepost(ctx, "gatepost-login", dataPath(up), dbOther)
	if err != nil {
		return nil, err
	}
	defer l.end(g.process)
	address, node, err := l.node(ctx, "node-login", true)
	if err != nil {
		return nil, err
	}
	defer l.end(node)
	got, err := l.rounds(ctx, []subject{
		l.login(loginGatepost, g.address, g.process, up.process, store.process),
		l.login(loginNode, address, node, up.process, store.process),
	})
	if err != nil {
		return nil, err
	}
	for _, db := range []int{dbOther, dbNode} {
		if err := store.client(db).FlushDB(ctx).Err(); err != nil {
			return nil, fmt.Errorf("forgetting the logins: %w", err)
		}
	}
	delete(l.stack.subjects, nodeAsItWas) // its tokens are deleted too
	delete(l.stack.subjects, nodeKeepAlive)
	l.keep("POST /token", []string{loginGatepost, loginNode}, got)
	return []finding{
		finding{Goal: "G11", What: "POST /token ÷ Node gateway with keep-alive", Bound: atLeast(0.85), Rounds: got.ratios(loginGatepost, loginNode, rate)}.summarize(),
	}, nil
}

// login is a subject with logins. It checks that a login returns a valid token, and that no other
// token is accepted.
func (l *lab) login(name, address string, processes ...*process) subject {
	what := load{
		method: http.MethodPost, address: address, path: "/token", header: "X-Login",
		headers: [][2]string{{"Content-Type", "application/json"}}, body: `{"username":"ann","password":"wonderland"}`,
	}
	for i := range loginUsers {
		what.values = append(what.values, "user-"+strconv.Itoa(i))
	}
	return subject{
		name: name,
		run:  func(ctx context.Context, during time.Duration) (outcome, error) { return l.run(ctx, what, during) },
		check: func(ctx context.Context) error {
			token, err := login(ctx, "http://"+address, "checked")
			if err != nil {
				return err
			}
			return visit{address: address, path: "/orders/5", tokens: []string{token}}.check(ctx)
		},
		processes: processes,
	}
}
