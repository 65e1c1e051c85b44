package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/redis/go-redis/v9"
)

//go:embed peers/envoy/*.yaml peers/nginx/*.conf peers/opa/policy.rego peers/oathkeeper/config.yaml peers/oathkeeper/rules.json
var peerFiles embed.FS

// stack is shared by the goals: Redis, the service behind every gateway, and the designs in front
// of it.
type stack struct {
	redis    *redisServer
	upstream *service
	subjects map[string]subject
	gateways map[string]*gateway
}

// redisServer is the only Redis of the run. Each design has its own database.
type redisServer struct {
	*process
	address string
	clients map[int]*redis.Client
}

// The databases of Redis.
const (
	dbGatepost = iota
	dbRule     // for the peers that read Redis for each check
	dbNode
	dbOther // for gateways of single goals
)

func (r *redisServer) url(db int) string { return "redis://" + r.address + "/" + strconv.Itoa(db) }

// client returns a client of the bench itself.
func (r *redisServer) client(db int) *redis.Client {
	if r.clients[db] == nil {
		r.clients[db] = redis.NewClient(&redis.Options{Addr: r.address, DB: db})
	}
	return r.clients[db]
}

func (l *lab) redis(ctx context.Context) (*redisServer, error) {
	if l.stack.redis != nil {
		return l.stack.redis, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := l.start("redis", "redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", l.dir)
	if err != nil {
		return nil, err
	}
	l.stack.redis = &redisServer{p, local(port), map[int]*redis.Client{}}
	return l.stack.redis, p.awaitListening(ctx, local(port))
}

// service is the nginx behind every gateway, which is also the user service.
type service struct {
	*process
	port int
}

func (s *service) url() string { return "http://" + local(s.port) }

func (l *lab) upstream(ctx context.Context) (*service, error) {
	if l.stack.upstream != nil {
		return l.stack.upstream, nil
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p, err := l.nginx(ctx, "upstream", "upstream.conf", port, map[string]any{})
	l.stack.upstream = &service{p, port}
	return l.stack.upstream, err
}

// nginx starts an nginx with a configuration of peers/nginx.
func (l *lab) nginx(ctx context.Context, name, config string, port int, with map[string]any) (*process, error) {
	dir, err := l.folder(name)
	if err != nil {
		return nil, err
	}
	with["Dir"], with["Port"] = dir, port
	file, err := l.fill("peers/nginx/"+config, filepath.Join(dir, "nginx.conf"), with)
	if err != nil {
		return nil, err
	}
	p, err := l.start(name, "nginx", "-c", file, "-e", filepath.Join(dir, "error.log"))
	if err != nil {
		return nil, err
	}
	return p, p.awaitListening(ctx, local(port))
}

// fill writes a peer's configuration from its template.
func (l *lab) fill(from, to string, with any) (string, error) {
	text, err := peerFiles.ReadFile(from)
	if err != nil {
		return "", err
	}
	parsed, err := template.New(from).Option("missingkey=error").Parse(string(text))
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", from, err)
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, with); err != nil {
		return "", fmt.Errorf("filling in %s: %w", from, err)
	}
	return to, os.WriteFile(to, out.Bytes(), 0o644)
}

// gateway is a Gatepost, started like by a user.
type gateway struct {
	*process
	address, admin string
	file           string // its definitions
}

func (g *gateway) url() string { return "http://" + g.address }

// gatepost starts `gatepost run` with definitions, to which the listen address is added, and more
// arguments. It waits until the gateway is ready.
func (l *lab) gatepost(ctx context.Context, name, definitions string, db int, arguments ...string) (*gateway, error) {
	store, err := l.redis(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := l.folder(name)
	if err != nil {
		return nil, err
	}
	listen, err := freePort()
	if err != nil {
		return nil, err
	}
	admin, err := freePort()
	if err != nil {
		return nil, err
	}
	g := &gateway{address: local(listen), admin: local(admin), file: filepath.Join(dir, "gatepost.yaml")}
	if err := g.define(definitions); err != nil {
		return nil, err
	}
	g.process, err = l.start(name, l.program("gatepost"), append([]string{
		"run", "--config", g.file, "--data", filepath.Join(dir, "data"), "--redis", store.url(db), "--admin", g.admin,
		"--envoy", l.envoy, "--log-format", "json"}, arguments...)...)
	if err != nil {
		return nil, err
	}
	return g, g.awaitReady(ctx)
}

func (g *gateway) awaitReady(ctx context.Context) error {
	return g.await(ctx, "to be ready", func() bool {
		status, _, err := get(ctx, "http://"+g.admin+"/readyz")
		return err == nil && status == http.StatusOK
	})
}

// define replaces the definitions atomically by a rename.
func (g *gateway) define(definitions string) error {
	next := g.file + ".next"
	if err := os.WriteFile(next, []byte("listen: "+g.address+"\n"+definitions), 0o644); err != nil {
		return fmt.Errorf("writing definitions: %w", err)
	}
	return os.Rename(next, g.file)
}

// dataPath returns the definitions for the load: a secured service and a public one.
func dataPath(upstream *service) string {
	return fmt.Sprintf(`tokens:
  authenticator: {url: "%s/users/authenticate"}
services:
  - {name: orders, path: /orders, allowed_methods: [GET, POST, PUT, DELETE], upstreams: ["%[1]s"]}
  - {name: items, path: /items, authenticate: false, allowed_methods: [GET], upstreams: ["%[1]s"]}
`, upstream.url())
}

// bareEnvoy starts an Envoy with its own configuration. authz is the data of peers/envoy/bare.yaml.
func (l *lab) bareEnvoy(ctx context.Context, name string, authz map[string]any) (address string, p *process, err error) {
	up, err := l.upstream(ctx)
	if err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	all := map[string]any{"GRPC": false, "HTTP": false, "Port": 0, "PathPrefix": ""}
	for k, v := range authz {
		all[k] = v
	}
	file, err := l.fill("peers/envoy/bare.yaml", filepath.Join(l.dir, name+".yaml"), map[string]any{
		"Admin": filepath.Join(l.dir, name+".sock"), "Port": port, "Upstream": up.port, "Authz": all,
	})
	if err != nil {
		return "", nil, err
	}
	p, err = l.startEnvoy(name, file)
	if err != nil {
		return "", nil, err
	}
	return local(port), p, p.awaitListening(ctx, local(port))
}

func (l *lab) startEnvoy(name, file string) (*process, error) {
	return l.start(name, l.envoy, "-c", file, "--use-dynamic-base-id", "--log-level", "warning")
}

// node starts the Node gateway, in its original form or with keep-alive connections to the
// services.
func (l *lab) node(ctx context.Context, name string, keepAlive bool) (address string, p *process, err error) {
	program, err := find("node", "apt-get install nodejs npm, version 20 or newer")
	if err != nil {
		return "", nil, err
	}
	dir := filepath.Join(l.root, "bench/peers/node")
	if _, err := os.Stat(filepath.Join(dir, "node_modules/http-proxy")); err != nil {
		l.say("installing the Node gateway's two libraries (npm ci)")
		install := exec.CommandContext(ctx, "npm", "ci", "--omit=dev", "--no-fund", "--no-audit")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			return "", nil, fmt.Errorf("installing the Node gateway's libraries: %w\n%s", err, out)
		}
	}
	store, err := l.redis(ctx)
	if err != nil {
		return "", nil, err
	}
	up, err := l.upstream(ctx)
	if err != nil {
		return "", nil, err
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	settings, err := json.Marshal(map[string]any{
		"listen": port, "redis": store.url(dbNode), "keepAlive": keepAlive, "authenticationServiceUrl": up.url(), "origins": []string{},
		"services": []map[string]any{
			{"name": "orders", "path": "/orders", "authenticate": true, "allowedMethods": []string{"GET", "POST", "PUT", "DELETE"}, "upStream": up.url()},
			{"name": "items", "path": "/items", "authenticate": false, "allowedMethods": []string{"GET"}, "upStream": up.url()},
		},
	})
	if err != nil {
		return "", nil, err
	}
	p, err = l.start(name, program, filepath.Join(dir, "gateway.js"), string(settings))
	if err != nil {
		return "", nil, err
	}
	return local(port), p, p.awaitListening(ctx, local(port))
}

// client is the HTTP client of the checks: it keeps connections alive and follows no redirects.
var client = &http.Client{
	Timeout:       30 * time.Second,
	Transport:     &http.Transport{MaxIdleConnsPerHost: connections, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// ask sends a request and returns the response. Headers have the form "Name: value".
func ask(ctx context.Context, method, url, body string, headers ...string) (status int, header http.Header, text string, err error) {
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, ": ")
		if name == "Host" {
			request.Host = value
		}
		request.Header.Set(name, value)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, nil, "", err
	}
	defer response.Body.Close()
	read, err := io.ReadAll(response.Body)
	return response.StatusCode, response.Header, string(read), err
}

func get(ctx context.Context, url string, headers ...string) (status int, text string, err error) {
	status, _, text, err = ask(ctx, http.MethodGet, url, "", headers...)
	return status, text, err
}

// login logs a user in through a gateway and returns the token.
func login(ctx context.Context, gateway, user string) (string, error) {
	status, header, text, err := ask(ctx, http.MethodPost, gateway+"/token", `{"username":"ann","password":"wonderland"}`,
		"X-Login: "+user, "Content-Type: application/json")
	if err != nil {
		return "", fmt.Errorf("logging in: %w", err)
	}
	if token := header.Get("Token"); status == http.StatusOK && token != "" {
		return token, nil
	}
	return "", fmt.Errorf("logging in: %w: %d %s", errWrong, status, text)
}
