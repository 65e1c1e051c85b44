package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/tokens/faultproxy"
	"gatepost/tokens/redistest"
)

// line is a gateway's connection to Redis through proxies. It separates the tracking connection, on
// which Redis sends invalidations, from the data connections, so that each kind can fail alone.
type line struct {
	// Addr is the address that the gateway uses for Redis.
	Addr string
	// Tracking and Data are the proxies of the two kinds.
	Tracking, Data *faultproxy.Proxy

	listener net.Listener
	running  sync.WaitGroup
	done     chan struct{}
}

func startLine(t *testing.T, redis string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{
		Addr: listener.Addr().String(), Tracking: faultproxy.Start(t, redis), Data: faultproxy.Start(t, redis),
		listener: listener, done: make(chan struct{}),
	}
	l.running.Go(l.accept)
	t.Cleanup(func() {
		close(l.done)
		_ = listener.Close()
		l.running.Wait()
	})
	return l
}

func (l *line) accept() {
	for {
		client, err := l.listener.Accept()
		if err != nil {
			return
		}
		l.running.Go(func() { l.connect(client) })
	}
}

// connect reads the first command, in which the tracking connection sets its name, and continues
// through the proxy of its kind.
func (l *line) connect(client net.Conn) {
	defer client.Close()
	in := bufio.NewReader(client)
	hello, tracking, err := firstCommand(in)
	if err != nil {
		return
	}
	proxy := l.Data
	if tracking {
		proxy = l.Tracking
	}
	server, err := net.Dial("tcp", proxy.Addr)
	if err != nil {
		return
	}
	defer server.Close()
	if _, err := server.Write(hello); err != nil {
		return
	}
	ended := make(chan struct{}, 2)
	var both sync.WaitGroup
	both.Go(func() { _, _ = in.WriteTo(server); ended <- struct{}{} })
	both.Go(func() { _, _ = bufio.NewReader(server).WriteTo(client); ended <- struct{}{} })
	select {
	case <-ended:
	case <-l.done:
	}
	client.Close()
	server.Close()
	both.Wait()
}

// firstCommand reads one command in the format of Redis clients: an array of strings.
func firstCommand(in *bufio.Reader) (raw []byte, tracking bool, err error) {
	var read bytes.Buffer
	number := func(kind byte) int {
		text, e := in.ReadString('\n')
		read.WriteString(text)
		n, e2 := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(text, string(kind))))
		if e != nil || e2 != nil {
			err = fmt.Errorf("no command of Redis: %q", text)
		}
		return n
	}
	for words := number('*'); words > 0 && err == nil; words-- {
		word := make([]byte, number('$')+2)
		for n := 0; n < len(word) && err == nil; {
			var some int
			some, err = in.Read(word[n:])
			n += some
		}
		read.Write(word)
		tracking = tracking || string(word) == "gatepost-tracking\r\n"
	}
	return read.Bytes(), tracking, err
}

// nemesis injects one or two faults at a time into gateways and Redis, and heals them.
type nemesis struct {
	t        *testing.T
	random   *rand.Rand
	history  *history
	gateways []*gateway
	// redis and lines are nil if the gateways use the embedded store.
	redis *redistest.Server
	lines []*line
	// shards is nil if Redis is not a Cluster.
	shards *shards
	// watched is nil if Redis is not behind Sentinel.
	watched *watched
	// clocks are those of the gateways; nil if they have the machine's.
	clocks []*clock

	done []string // the faults and their times
}

// fault is one fault. A place has at most one fault at a time.
type fault struct {
	place, name string
	// inflict causes the fault; heal ends it.
	inflict, heal func()
	// most is the maximum duration.
	most time.Duration
}

// rage injects faults until the time is over. It then heals everything; all processes run again,
// but may not be ready yet.
func (n *nemesis) rage(until time.Time) {
	for time.Now().Before(until) {
		first := n.any()
		befallen := []fault{first}
		if second := n.any(); n.random.IntN(3) == 0 && second.place != first.place {
			befallen = append(befallen, second)
		}
		from, names := n.history.now(), []string{}
		lasts := time.Duration(0)
		for _, f := range befallen {
			f.inflict()
			names = append(names, f.place+" "+f.name)
			lasts = max(lasts, time.Duration(n.random.Int64N(int64(f.most)+1)))
		}
		time.Sleep(lasts)
		for _, f := range befallen {
			f.heal()
		}
		n.done = append(n.done, fmt.Sprintf("%v to %v: %s", from.Round(time.Millisecond), n.history.now().Round(time.Millisecond), strings.Join(names, ", and ")))
		time.Sleep(time.Duration(n.random.Int64N(int64(500 * time.Millisecond))))
	}
}

// any picks a place and then a fault.
func (n *nemesis) any() fault {
	places := [][]fault{}
	for i, g := range n.gateways {
		places = append(places, n.ofGateway(i, g))
	}
	for i, l := range n.lines {
		all := n.ofLine(i, l)
		places = append(places, all, all)
	}
	if n.redis != nil {
		all := n.ofRedis()
		places = append(places, all, all)
	}
	if n.shards != nil {
		all := n.ofShards()
		places = append(places, all, all)
	}
	if n.watched != nil {
		all := n.ofWatched()
		places = append(places, all, all, all)
	}
	place := places[n.random.IntN(len(places))]
	return place[n.random.IntN(len(place))]
}

func nothing() {}

// servers returns all Redis servers.
func (n *nemesis) servers() []*redistest.Server {
	all := append(n.shards.all(), n.watched.servers()...)
	if n.redis != nil {
		all = append(all, n.redis)
	}
	return all
}

func (n *nemesis) ofRedis() []fault {
	slow := func(d time.Duration) func() {
		return func() {
			for _, l := range n.lines {
				for _, p := range []*faultproxy.Proxy{l.Data, l.Tracking} {
					p.Delay(faultproxy.Up, d/2)
					p.Delay(faultproxy.Down, d/2)
				}
			}
		}
	}
	healed := func() {
		for _, l := range n.lines {
			l.Data.Heal()
			l.Tracking.Heal()
		}
	}
	all := []fault{
		{name: "killed", inflict: n.redis.Kill, heal: n.redis.Restart, most: 1200 * time.Millisecond},
		{name: "frozen", inflict: n.redis.Freeze, heal: n.redis.Thaw, most: 3 * time.Second},
		{name: "a little slow", inflict: slow(20 * time.Millisecond), heal: healed, most: 2 * time.Second},
		{name: "slow", inflict: slow(400 * time.Millisecond), heal: healed, most: 2 * time.Second},
		{name: "without its clients", inflict: func() { n.redis.Do("CLIENT", "KILL", "TYPE", "normal") }, heal: nothing},
		{name: "without those that it calls back", inflict: func() { n.redis.Do("CLIENT", "KILL", "TYPE", "pubsub") }, heal: nothing},
		{name: "not writing", inflict: func() { n.redis.Do("CLIENT", "PAUSE", "60000", "WRITE") }, heal: func() { n.redis.Do("CLIENT", "UNPAUSE") }, most: 2 * time.Second},
	}
	for i := range all {
		all[i].place = "redis"
	}
	return all
}

func (n *nemesis) ofLine(number int, l *line) []fault {
	var all []fault
	both := []*faultproxy.Proxy{l.Data, l.Tracking}
	for kind, proxies := range [][]*faultproxy.Proxy{both, both[:1], both[1:]} {
		add := func(name string, most time.Duration, do func(p *faultproxy.Proxy)) {
			each := func(do func(p *faultproxy.Proxy)) func() {
				return func() {
					for _, p := range proxies {
						do(p)
					}
				}
			}
			all = append(all, fault{
				place: fmt.Sprintf("the line of gateway %d", number), name: []string{"", "data ", "tracking "}[kind] + name,
				inflict: each(do), heal: each((*faultproxy.Proxy).Heal), most: most,
			})
		}
		add("cut", 0, (*faultproxy.Proxy).Cut)
		add("refused", 2*time.Second, func(p *faultproxy.Proxy) { p.Refuse(); p.Cut() })
		ways := [][]faultproxy.Direction{{faultproxy.Up, faultproxy.Down}, {faultproxy.Up}, {faultproxy.Down}}
		for way, directions := range ways {
			which := []string{"both ways", "up", "down"}[way]
			add("partitioned "+which, 2500*time.Millisecond, func(p *faultproxy.Proxy) { p.Hold(directions...) })
			add("lost "+which, 2500*time.Millisecond, func(p *faultproxy.Proxy) { p.Swallow(directions...) })
			add("slow "+which, 2*time.Second, func(p *faultproxy.Proxy) {
				for _, d := range directions {
					p.Delay(d, 300*time.Millisecond)
				}
			})
		}
	}
	return all
}

func (n *nemesis) ofGateway(number int, g *gateway) []fault {
	place := fmt.Sprintf("gateway %d", number)
	envoy := func(s syscall.Signal) func() {
		return func() {
			if pid := envoyOf(g.command.Process.Pid); pid != 0 {
				_ = syscall.Kill(pid, s)
			}
		}
	}
	all := []fault{
		{place, "killed", g.Kill, g.Run, time.Second},
		{place, "ended", g.Stop, g.Run, 200 * time.Millisecond},
		{place, "frozen", func() { g.Signal(syscall.SIGSTOP) }, func() { g.Signal(syscall.SIGCONT) }, 3 * time.Second},
		{place, "frozen for long", func() { g.Signal(syscall.SIGSTOP) }, func() { g.Signal(syscall.SIGCONT) }, 6 * time.Second},
		{place, "without its Envoy", envoy(syscall.SIGKILL), nothing, 0},
		{place, "with its Envoy frozen", envoy(syscall.SIGSTOP), envoy(syscall.SIGCONT), 3 * time.Second},
		{place, "all frozen", func() { envoy(syscall.SIGSTOP)(); g.Signal(syscall.SIGSTOP) }, func() { g.Signal(syscall.SIGCONT); envoy(syscall.SIGCONT)() }, 3 * time.Second},
	}
	if n.clocks != nil {
		step := func(by time.Duration) func() { return func() { n.clocks[number].step(by) } }
		all = append(all,
			fault{place, "with its clock set back", step(-largestStep), step(0), 2 * time.Second},
			fault{place, "with its clock set forward", step(largestStep), step(0), 2 * time.Second})
	}
	return all
}

// largestStep is nearly a lease. It is shorter than the tolerance for a token's expiry.
const largestStep = expiryMargin * 8 / 10

// envoyOf returns the process id of a gateway's Envoy, or 0. An Envoy that only validates the
// bootstrap is not counted.
func envoyOf(gatepost int) int {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", gatepost))
	for _, thread := range threads {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", gatepost, thread.Name()))
		for _, child := range strings.Fields(string(children)) {
			if line, _ := os.ReadFile("/proc/" + child + "/cmdline"); bytes.Contains(line, []byte("--disable-hot-restart")) {
				pid, _ := strconv.Atoi(child)
				return pid
			}
		}
	}
	return 0
}
