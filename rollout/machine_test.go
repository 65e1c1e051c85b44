package rollout

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/definitions"
	"gatepost/xds"
)

// A step of a test is an event, and what it leads to: the state of the machine, and after " | " the actions, notes
// apart.
type step struct {
	event any
	want  string
}

// life is a story about versions v0, v1, ... and Envoys 1, 2, ...
type life struct {
	name   string
	config Config
	steps  []step
}

var clock = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// v is a version; one with an older version in front is published in place of a rejected one.
func v(id string, change ...func(*version)) *version {
	out := &version{
		snapshot: &xds.Snapshot{Version: id}, definitions: &definitions.Definitions{Name: id, Gateway: &definitions.Gateway{}}, hasModule: true,
	}
	for _, f := range change {
		f(out)
	}
	return out
}

// insteadOf makes a version the one that takes the place of a rejected one.
func insteadOf(rejected *version) func(*version) {
	return func(v *version) { v.failure, v.instead = rejection(rejected.id()), rejected }
}

func withholding(services ...string) func(*version) {
	return func(v *version) { v.withheld = services }
}

func withoutModule(v *version) { v.hasModule = false }

func rejection(version string) *xds.Rejection {
	return &xds.Rejection{Version: version, Type: "listener", Reason: "no", At: clock}
}

func connected(id int64) xds.Connected { return xds.Connected{Peer: xds.Peer{ID: id}} }
func trusted(id int64) xds.Connected {
	return xds.Connected{Peer: xds.Peer{ID: id, Trusted: true, EnvoyVersion: "1.40.0"}}
}
func gone(id int64) xds.Disconnected           { return xds.Disconnected{ID: id} }
func ackedPart(id int64) xds.PartAcked         { return xds.PartAcked{ID: id} }
func acked(id int64, version string) xds.Acked { return xds.Acked{ID: id, Version: version, At: clock} }
func delivered(version string) xds.Delivered   { return xds.Delivered{Version: version} }
func nacked(id int64, version string) xds.Nacked {
	return xds.Nacked{ID: id, Rejection: rejection(version)}
}
func answers(id int64, version string) answered {
	return answered{id: id, asked: version, serving: version}
}
func silent(id int64, version string) answered {
	return answered{id: id, asked: version, err: errors.New("connection refused"), overdue: true}
}

// served is how version v1 becomes active with these Envoys.
func served(envoys ...xds.Connected) []step {
	out := []step{{offered{v("v1")}, "published v1 | publish v1"}}
	for _, e := range envoys {
		out = append(out, step{e, "published v1"}, step{acked(e.Peer.ID, "v1"), "published v1"})
	}
	out = append(out, step{delivered("v1"), "acked v1"})
	for i, e := range envoys {
		want := "acked v1"
		if i == len(envoys)-1 {
			want = "active v1 | activate v1"
		}
		out = append(out, step{answers(e.Peer.ID, "v1"), want})
	}
	return out
}

func after(first []step, more ...step) []step { return append(slices.Clip(first), more...) }

var (
	v1, v2 = v("v1"), v("v2")
	part   = v("v2-a", insteadOf(v2), withholding("a"))
)

var lives = []life{
	{"every Envoy takes each version", Config{}, after(served(trusted(1), trusted(2)),
		step{offered{v2}, "published v2 | publish v2"},
		step{acked(1, "v2"), "published v2"},
		step{acked(2, "v2"), "published v2"},
		step{delivered("v2"), "acked v2"},
		step{answers(1, "v2"), "acked v2"},
		step{answered{id: 2, asked: "v2", serving: "v1"}, "acked v2"}, // a worker still serves the last version
		step{answers(2, "v2"), "active v2 | activate v2"},
	)},
	{"an Envoy that is late is not waited for, but counts", Config{}, after(served(trusted(1), trusted(2)),
		step{offered{v2}, "published v2 | publish v2"},
		step{acked(1, "v2"), "published v2"},
		step{delivered("v2"), "acked v2"},
		step{answers(1, "v2"), "acked v2"},
		step{acked(2, "v2"), "acked v2"},
		step{answers(2, "v2"), "active v2 | activate v2"},
	)},
	{"a trusted Envoy that cannot be asked is not waited for", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{acked(1, "v1"), "published v1"},
		{delivered("v1"), "acked v1"},
		{answered{id: 1, asked: "v1", err: errors.New("no route")}, "acked v1"},
		{silent(1, "v1"), "active v1 | activate v1"},
	}},
	{"a NACK during a rollout falls back to the last good version", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{ackedPart(1), "published v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{delivered("v1"), "active v1 fallen back | activate v1 again"},
		step{offered{v2}, "active v1 fallen back, refused"},
		step{offered{v("v3")}, "published v3 | publish v3"},
		step{nacked(1, "v2"), "published v3"}, // late
		step{acked(1, "v3"), "published v3"},
		step{delivered("v3"), "acked v3"},
		step{answers(1, "v3"), "active v3 | activate v3"},
	)},
	{"two Envoys disagree", Config{}, after(served(trusted(1), trusted(2)),
		step{offered{v2}, "published v2 | publish v2"},
		step{acked(1, "v2"), "published v2"},
		step{answers(1, "v2"), "published v2"},
		step{nacked(2, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{acked(1, "v1"), "published v1 fallen back"},
		step{delivered("v1"), "acked v1 fallen back"},
		step{answers(1, "v1"), "active v1 fallen back | activate v1 again"},
	)},
	{"two Envoys disagree about the first version", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{trusted(2), "published v1"},
		{acked(1, "v1"), "published v1"},
		{nacked(2, "v1"), "published v1"}, // it never was active, and another is
		{answers(1, "v1"), "published v1"},
		{delivered("v1"), "active v1 | activate v1"},
	}},
	{"a rollback while an Envoy reconnects", Config{}, after(served(trusted(1), trusted(2)),
		step{offered{v2}, "published v2 | publish v2"},
		step{gone(2), "published v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{trusted(3), "published v1 fallen back"}, // the second one
		step{delivered("v1"), "active v1 fallen back | activate v1 again"},
		step{acked(3, "v1"), "active v1 fallen back"},
		step{offered{v("v3")}, "published v3 | publish v3"},
		step{acked(1, "v3"), "published v3"},
		step{acked(3, "v3"), "published v3"},
		step{delivered("v3"), "acked v3"},
		step{answers(1, "v3"), "acked v3"},
		step{answers(3, "v3"), "active v3 | activate v3"},
	)},
	{"an Envoy that reconnects rejects what it did not reject before", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{gone(1), "published v2"},
		step{trusted(2), "published v2"},
		step{nacked(2, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"}, // alone, it counts
		step{acked(2, "v1"), "published v1 fallen back"},
		step{delivered("v1"), "acked v1 fallen back"},
		step{answers(2, "v1"), "active v1 fallen back | activate v1 again"},
	)},
	{"the first version after a restart is rejected, and the last good one takes its place", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{repaired{v("v0", insteadOf(v1)), v1}, "published v0 fallen back | publish v0"},
		{acked(1, "v0"), "published v0 fallen back"},
		{delivered("v0"), "acked v0 fallen back"},
		{answers(1, "v0"), "active v0 fallen back | activate v0"},
		{offered{v1}, "active v0 fallen back, refused"},
	}},
	{"the first version after a restart is rejected", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{retried{}, "published v1 | publish v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{acked(1, "v1"), "rejected v1"},
		{delivered("v1"), "acked v1"}, // the cause is gone
		{answers(1, "v1"), "active v1 | activate v1"},
		{offered{v1}, "active v1 | publish v1, activate v1 again"},
	}},
	{"the NACK names a service", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{repaired{part, v2}, "published v2-a in part | publish v2-a"},
		step{nacked(1, "v2-a"), "published v1 fallen back | publish v1, repair v2-a by v1"}, // another service
		step{repaired{v("v2-ab", insteadOf(v2), withholding("a", "b")), part}, "published v2-ab in part | publish v2-ab"},
		step{acked(1, "v2-ab"), "published v2-ab in part"},
		step{delivered("v2-ab"), "acked v2-ab in part"},
		step{answers(1, "v2-ab"), "active v2-ab in part | activate v2-ab"},
		step{retried{}, "active v2-ab in part | offer v2"}, // as it was defined
		step{offered{v("v3")}, "published v3 | publish v3"},
	)},
	{"a repair that was rejected before", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{repaired{part, v2}, "published v2-a in part | publish v2-a"},
		step{nacked(1, "v2-a"), "published v1 fallen back | publish v1, repair v2-a by v1"},
		step{repaired{part, part}, "published v1 fallen back, refused"},
		step{retried{}, "published v1 fallen back | offer v2"}, // all of it
	)},
	{"a repair that comes too late", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{offered{v("v3")}, "published v3 | publish v3"},
		step{repaired{part, v2}, "published v3"},
	)},
	{"what was rejected is tried again", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{retried{}, "published v1 fallen back | offer v2"},
		step{offered{v2}, "published v2 | publish v2"},
		step{retried{}, "published v2"}, // there is nothing to try
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{offered{v("v3")}, "published v3 | publish v3"},
		step{offered{v2}, "published v3, refused"},
		step{retried{}, "published v3 | offer v2"},
	)},
	{"what was rejected is not tried again once a mistake takes its place", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{failure{errors.New("a mistake")}, "published v1 failed"},
		step{retried{}, "published v1 failed"},
	)},
	{"what an Envoy has rejected that was active stays rejected when it leaves", Config{}, after(served(trusted(1)),
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{gone(1), "published v1 fallen back"},
		step{offered{v2}, "published v1 fallen back, refused"},
	)},
	{"definitions that cannot be read leave everything as it is", Config{}, after(served(trusted(1)),
		step{failure{errors.New("a mistake")}, "active v1 failed"},
		step{offered{v("v1")}, "active v1 | publish v1, activate v1"}, // the same again: saved, without another ACK
	)},
	{"renewed certificates of the published version", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{renewed{v("v1-b"), v1}, "published v1-b | publish v1-b"},
		{renewed{v("v1-c"), v1}, "published v1-b"}, // another was published meanwhile
		{acked(1, "v1-b"), "published v1-b"},
		{delivered("v1-b"), "acked v1-b"},
		{answers(1, "v1-b"), "active v1-b | activate v1-b"},
	}},
	{"a NACK that rejects nothing", Config{}, after(served(trusted(1)),
		step{nacked(1, "v1"), "active v1"}, // it is served, and there is none to fall back to
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(1, ""), "published v2"},   // of a response that was superseded
		step{nacked(7, "v2"), "published v2"}, // of an Envoy that has gone
		step{acked(1, "v2"), "published v2"},
		step{delivered("v1"), "published v2"}, // late
		step{delivered("v0"), "published v2"}, // of the time before a restart
		step{delivered("v2"), "acked v2"},
		step{answers(7, "v2"), "acked v2"},
		step{answers(1, "v2"), "active v2 | activate v2"},
		step{gone(7), "active v2"},
	)},
	{"an Envoy that answers again after it was silent", Config{}, after(served(trusted(1), trusted(2)),
		step{offered{v2}, "published v2 | publish v2"},
		step{acked(1, "v2"), "published v2"},
		step{acked(2, "v2"), "published v2"},
		step{delivered("v2"), "acked v2"},
		step{silent(2, "v2"), "acked v2"},
		step{answered{id: 2, asked: "v2", serving: "v1"}, "acked v2"}, // it can be asked, so it is waited for
		step{answers(1, "v2"), "acked v2"},
		step{answers(2, "v2"), "active v2 | activate v2"},
	)},
	{"a gateway that starts with its last good definitions", Config{}, after(served(trusted(1)),
		step{startedDegraded{errors.New("no file")}, "active v1 failed"},
		step{offered{v2}, "published v2 | publish v2"},
	)},
	{"a gateway that starts without its definitions", Config{}, []step{
		{startedDegraded{errors.New("no file")}, "idle failed"},
		{trusted(1), "idle failed"},
		{offered{v1}, "published v1 | publish v1"},
	}},
	{"the NACK names the module", Config{Options: xds.Options{Module: xds.Module{Library: "no"}}}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{trusted(1), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, rebuild v1"},
		{repaired{v("v0-plain", withoutModule), v("v0")}, "rejected v1"}, // it is not the repair of this one
		{repaired{v("v1-plain", withoutModule), v1}, "published v1-plain | publish v1-plain"},
		{acked(1, "v1-plain"), "published v1-plain"},
		{delivered("v1-plain"), "acked v1-plain"},
		{answers(1, "v1-plain"), "active v1-plain | activate v1-plain"},
		{offered{v2}, "published v2 | publish v2"}, // was built before the module was dropped
		{nacked(1, "v2"), "published v1-plain fallen back | publish v1-plain, rebuild v2"},
	}},
	{"the NACK names the module of a version that has none", Config{Options: xds.Options{Module: xds.Module{Library: "no"}}}, []step{
		{offered{v("v1-plain", withoutModule)}, "published v1-plain | publish v1-plain"},
		{trusted(1), "published v1-plain"},
		{nacked(1, "v1-plain"), "rejected v1-plain | halt v1-plain, repair v1-plain"},
	}},
	{"a stranger of a version that must not use the module", Config{ModuleVersion: func(string) string { return "not tested" }}, []step{
		{xds.Connected{Peer: xds.Peer{ID: 1, EnvoyVersion: "1.39.0"}}, "idle"},
		{offered{v1}, "published v1 | publish v1"},
	}},
	{"an Envoy of a version that must not use the module", Config{ModuleVersion: func(string) string { return "not tested" }}, []step{
		{trusted(1), "idle"},
		{offered{v1}, "published v1 | publish v1, rebuild v1"},
		{repaired{v("v1-plain", withoutModule), v1}, "published v1-plain | publish v1-plain"},
		{trusted(2), "published v1-plain"},
	}},
	{"a stranger beside a trusted Envoy", Config{}, after(served(trusted(1)),
		step{connected(2), "active v1"},
		step{nacked(2, "v1"), "active v1"},
		step{acked(2, "v1"), "active v1"},
		step{answers(2, "v1"), "active v1"},
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(2, "v2"), "published v2"}, // although it was active
		step{acked(1, "v2"), "published v2"},
		step{delivered("v2"), "acked v2"},
		step{answers(1, "v2"), "active v2 | activate v2"},
	)},
	{"a stranger alone", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{acked(1, "v1"), "published v1"},
		{delivered("v1"), "acked v1"},
		{silent(1, "v1"), "acked v1"}, // an ACK is not enough
		{offered{v2}, "published v2 | publish v2"},
	}},
	{"a stranger that rejects the first version, and leaves", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{gone(1), "published v1"},
		{trusted(2), "published v1"},
		{acked(2, "v1"), "published v1"},
		{delivered("v1"), "acked v1"},
		{answers(2, "v1"), "active v1 | activate v1"},
	}},
	{"a stranger that rejects the first version, whose place is taken, and leaves", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{repaired{v("v0", insteadOf(v1)), v1}, "published v0 fallen back | publish v0"},
		{gone(1), "published v0 fallen back | offer v1"},
		{offered{v1}, "published v1 | publish v1"},
	}},
	{"a stranger that rejects what an Envoy has taken in part", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{ackedPart(1), "published v1"},
		{connected(2), "published v1"},
		{nacked(2, "v1"), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"}, // the other one has rejected it too
	}},
	{"two strangers reject the first version, and leave one after the other", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{connected(2), "published v1"},
		{nacked(1, "v1"), "rejected v1 | halt v1, repair v1"},
		{nacked(2, "v1"), "rejected v1 | halt v1, repair v1"},
		{gone(1), "rejected v1"}, // the other has rejected it too
		{gone(2), "published v1"},
	}},
	{"two strangers reject what both have taken in part", Config{}, []step{
		{offered{v1}, "published v1 | publish v1"},
		{connected(1), "published v1"},
		{connected(2), "published v1"},
		{ackedPart(1), "published v1"},
		{ackedPart(2), "published v1"},
		{nacked(1, "v1"), "published v1"},
		{nacked(2, "v1"), "rejected v1 | halt v1, repair v1"},
	}},
	{"on plain TCP a peer that has acknowledged a version may reject the next", Config{}, after(served(connected(1)),
		step{connected(2), "active v1"},
		step{acked(2, "v1"), "active v1"},
		step{offered{v2}, "published v2 | publish v2"},
		step{nacked(2, "v2"), "published v1 fallen back | publish v1, repair v2 by v1"},
		step{delivered("v1"), "active v1 fallen back | activate v1 again"},
	)},
}

func TestTheLifeOfAVersion(t *testing.T) {
	walked := map[string]bool{}
	for _, l := range lives {
		t.Run(l.name, func(t *testing.T) {
			m := newMachine(l.config)
			for i, s := range l.steps {
				from := m.state
				actions, err := m.step(s.event, clock)
				if from != m.state {
					walked[from.String()+" → "+m.state.String()] = true
				}
				if got := describe(&m, actions, err); got != s.want {
					t.Fatalf("step %d, %T%+v:\n%s, want\n%s", i+1, s.event, s.event, got, s.want)
				}
			}
		})
	}
	// Those of the package comment, in which two can follow from one event.
	want := []string{
		"idle → published", "published → acked", "published → active", "published → rejected", "acked → active", "acked → published",
		"active → published", "rejected → published", "rejected → acked",
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(walked)); !slices.Equal(got, want) {
		t.Errorf("the lives have the transitions\n%q, want\n%q", got, want)
	}
}

func TestTheLastRejectionStaysInTheStatusAfterItWasOvercome(t *testing.T) {
	m := newMachine(Config{})
	walk := func(events ...any) Status {
		t.Helper()
		for _, e := range events {
			if _, err := m.step(e, clock); err != nil {
				t.Fatal(err)
			}
		}
		return m.status()
	}
	for _, s := range served(trusted(1)) {
		walk(s.event)
	}
	rejects := walk(offered{v2}, nacked(1, "v2"))
	if e := rejects.Envoys[0]; e.Nack == nil || e.LastNack == nil || e.LastNack.Version != "v2" {
		t.Errorf("after the rejection: %+v", e)
	}
	pending := walk(offered{v("v3")})
	if pending.Version != "v3" || pending.Active != "v1" {
		t.Errorf("published is %s, active %s, want v3 and v1", pending.Version, pending.Active)
	}
	overcome := walk(acked(1, "v3"), delivered("v3"), answers(1, "v3"))
	if e := overcome.Envoys[0]; e.Nack != nil || e.LastNack == nil || e.LastNack.Version != "v2" || !e.LastNack.At.Equal(clock) {
		t.Errorf("after the next version: %+v", e)
	}
	if err := overcome.Missing(); err != nil || !overcome.Answered() || overcome.Degraded() != "" || overcome.Pending() != "" || overcome.Active != "v3" {
		t.Errorf("the overcome rejection decides: missing %v, degraded %q, pending %q, active %s", err, overcome.Degraded(), overcome.Pending(), overcome.Active)
	}
	shown := overcome.message().GetEnvoys()[0]
	if got := shown.GetLastNack(); shown.GetNack() != "" || got.GetVersion() != "v2" || got.GetReason() != "no" || got.GetType() != "listener" || !got.GetAt().AsTime().Equal(clock) {
		t.Errorf("the status has %v", shown)
	}
}

// describe renders the state of a machine and what it asks for.
func describe(m *machine, actions []action, err error) string {
	status := m.status()
	out := strings.TrimSpace(fmt.Sprintf("%s %s", status.State, status.Version))
	switch {
	case status.form() == inPart:
		out += " in part"
	case status.form() == fellBack:
		out += " fallen back"
	case status.Failure != nil && status.Rejection() == nil:
		out += " failed"
	}
	if err != nil {
		out += ", refused"
	}
	var asked []string
	for _, a := range actions {
		switch a := a.(type) {
		case publish:
			asked = append(asked, "publish "+a.version.id())
		case halt:
			asked = append(asked, "halt "+a.version)
		case activate:
			text := "activate " + a.version.id()
			if a.again {
				text += " again"
			}
			asked = append(asked, text)
		case repair:
			text := "repair " + a.rejected.id()
			if a.before != nil {
				text += " by " + a.before.Name
			}
			asked = append(asked, text)
		case rebuild:
			asked = append(asked, "rebuild "+a.version.id())
		case offerAgain:
			asked = append(asked, "offer "+a.definitions.Name)
		}
	}
	if len(asked) > 0 {
		out += " | " + strings.Join(asked, ", ")
	}
	return out
}

// A peer that rejects everything leaves a bounded trace.
func TestRejectionsAreBounded(t *testing.T) {
	m := newMachine(Config{})
	_, _ = m.step(connected(1), clock)
	for i := range 2 * mostRejected {
		id := strconv.Itoa(i)
		_, _ = m.step(offered{v(id)}, clock)
		newest := rejection(id)
		newest.At = clock.Add(time.Duration(i))
		_, _ = m.step(xds.Nacked{ID: 1, Rejection: newest}, clock)
		if m.rejected[id] == nil {
			t.Fatalf("rejection %d was forgotten at once", i)
		}
	}
	if got := len(m.rejected); got != mostRejected {
		t.Errorf("%d versions are known to be rejected, want %d", got, mostRejected)
	}
	if got := len(m.envoys[1].rejected); got > mostRejected {
		t.Errorf("%d rejections of the peer are remembered, want %d at most", got, mostRejected)
	}
}
