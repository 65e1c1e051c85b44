package main

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestProcessStatIsParsed(t *testing.T) {
	const line = "4711 (a (name) 1) S 12 4711 4711 0 -1 4194304 1 2 3 4 150 50 30 20 20 0 9 0 100 200 300"
	got, err := parseStat([]byte(line))
	want := stat{pid: 4711, parent: 12, name: "a (name) 1", cpu: 2 * time.Second, reaped: 500 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, broken := range []string{"", "1 name S 1", "1 (name) S 1"} {
		if _, err := parseStat([]byte(broken)); err == nil {
			t.Errorf("%q is read", broken)
		}
	}
}

func TestDescendantsCount(t *testing.T) {
	all := map[int]stat{1: {pid: 1}, 2: {pid: 2, parent: 1}, 3: {pid: 3, parent: 2}, 4: {pid: 4}}
	var pids []int
	for _, one := range below(all, 1) {
		pids = append(pids, one.pid)
	}
	slices.Sort(pids)
	if !slices.Equal(pids, []int{1, 2, 3}) {
		t.Errorf("got %v", pids)
	}
}

func TestCPUTimeOfChildrenIsMeasured(t *testing.T) {
	l := &lab{dir: t.TempDir()}
	t.Cleanup(func() { l.close() })
	// A child does the work, so it is measured only if children count.
	p, err := l.start("worker", "sh", "-c", "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'; sleep 60")
	if err != nil {
		t.Skipf("needs a shell: %v", err)
	}
	err = p.await(t.Context(), "to work", func() bool {
		got, err := used([]*process{p})
		return err == nil && got.total() > 50*time.Millisecond
	})
	if err != nil {
		t.Error(err)
	}
}

func TestAccountsOfThisProcess(t *testing.T) {
	before, err := cpuClock(os.Getpid())
	for after := before; err == nil && after < before+20*time.Millisecond; {
		after, err = cpuClock(os.Getpid()) // is work itself
	}
	if own := ownCPU(); err != nil || own < before+10*time.Millisecond {
		t.Errorf("the CPU clock began at %v, %v; the account has %v", before, err, own)
	}
	memory, err := readResident(os.Getpid())
	if err != nil || memory.own == 0 || memory.own+memory.shared >= memory.all {
		t.Errorf("resident: %v, %v", memory, err)
	}
	if _, err := readResident(-1); err == nil {
		t.Error("the memory of no process is read")
	}
}

func TestForeignLoadIsSeparated(t *testing.T) {
	at := func(user, idle, steal int64) machineTime {
		return machineTime{busy: time.Duration(user) * tick, stolen: time.Duration(steal) * tick, all: time.Duration(user+idle+steal) * tick}
	}
	for _, c := range []struct {
		name        string
		after       machineTime
		ours        time.Duration
		wantForeign float64
	}{
		{"all was ours", at(150, 50, 0), 1500 * time.Millisecond, 0},
		{"half was another's", at(150, 50, 0), 500 * time.Millisecond, 0.5},
		{"a hypervisor took a quarter", at(100, 50, 50), time.Second, 0.25},
		{"the accounts differ by a tick", at(100, 100, 0), 1010 * time.Millisecond, 0},
	} {
		if got := c.after.foreign(at(0, 0, 0), c.ours); math.Abs(got-c.wantForeign) > 1e-9 {
			t.Errorf("%s: %v, want %v", c.name, got, c.wantForeign)
		}
	}
	m, err := parseMachine([]byte("cpu  100 1 20 500 30 4 5 60 0 0\ncpu0 1 2\n"))
	if want := (machineTime{busy: 1300 * time.Millisecond, stolen: 600 * time.Millisecond, all: 7200 * time.Millisecond}); err != nil || m != want {
		t.Errorf("got %+v, %v, want %+v", m, err, want)
	}
	if _, err := parseMachine([]byte("intr 1 2")); err == nil {
		t.Error("another file is read")
	}
}

func TestBusyMachineIsRejected(t *testing.T) {
	l := &lab{tolerance: 0.08}
	if err := l.quiet(0.05); err != nil {
		t.Error(err)
	}
	if err := l.quiet(0.2); !errors.Is(err, errBusy) {
		t.Errorf("a fifth of the machine: %v", err)
	}
	l.force = true
	if err := l.quiet(0.3); err != nil || l.mostForeign != 0.3 {
		t.Errorf("with -force: %v, noted %v", err, l.mostForeign)
	}
	r := result{Rounds: leastRounds, Forced: true, MostForeign: l.mostForeign}
	if !bytes.Contains(r.table(), []byte("NO RESULT TO GO BY")) {
		t.Errorf("the result does not report it:\n%s", r.table())
	}
}

func TestRoundsAlternateTheirOrder(t *testing.T) {
	subjects := []subject{{name: "a"}, {name: "b"}, {name: "c"}}
	names := func(round int) (s string) {
		for _, one := range inTurn(subjects, round) {
			s += one.name
		}
		return s
	}
	if got := []string{names(0), names(1), names(2)}; !slices.Equal(got, []string{"abc", "cba", "abc"}) {
		t.Errorf("got %v", got)
	}
}

func TestGoalIsTheMedianOfPairedRatios(t *testing.T) {
	// In the second round the machine is half as fast, which does not change the ratio.
	s := series{"over": {{Rate: 200}, {Rate: 90}, {Rate: 220}}, "under": {{Rate: 100}, {Rate: 50}, {Rate: 100}}}
	f := finding{Bound: atLeast(2), Rounds: s.ratios("over", "under", rate)}.summarize()
	if !slices.Equal(f.Rounds, []float64{2, 1.8, 2.2}) || f.Value != 2 || f.verdict() != "reached" {
		t.Errorf("got %+v, %s", f, f.verdict())
	}
	f.Bound = atMost(1.9)
	if f.verdict() != "MISSED" {
		t.Errorf("got %s", f.verdict())
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("the median of an even number is %v", got)
	}
}

// A turn counts by how many requests it had, because a slow one has fewer in the same time.
func TestRoundIsTheSumOfItsTurns(t *testing.T) {
	got := together([]sample{
		{Rate: 300, Requests: 150, P50: 1, P99: 4, CPU: map[string]float64{"envoy": 10}, Foreign: 0.01},
		{Rate: 100, Requests: 50, P50: 3, P99: 2, CPU: map[string]float64{"envoy": 30, "redis": 8}, Foreign: 0.02},
	})
	want := sample{Rate: 200, Requests: 200, P50: 2, P99: 3, CPU: map[string]float64{"envoy": 15, "redis": 2}, Foreign: 0.02}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestWrongResponseGivesNoFigure(t *testing.T) {
	for _, c := range []struct {
		name, out string
		wrong     bool
	}{
		{"all is well", `{"requests":10,"microseconds":1000,"bad_status":0,"broken":0,"p50":1,"p99":2}`, false},
		{"one status was bad", `{"requests":10,"microseconds":1000,"bad_status":1,"broken":0,"p50":1,"p99":2}`, true},
		{"one response is missing", `{"requests":10,"microseconds":1000,"bad_status":0,"broken":1,"p50":1,"p99":2}`, true},
		{"there was no answer", `{"requests":0,"microseconds":1000,"bad_status":0,"broken":0,"p50":1,"p99":2}`, true},
	} {
		got, err := parseOutcome([]byte("Running 1s test\n\nRESULT " + c.out + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		if err := got.wrong(); errors.Is(err, errWrong) != c.wrong {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := parseOutcome([]byte("unable to connect")); err == nil {
		t.Error("no result is one")
	}
}

func TestRedisCommandsAreCounted(t *testing.T) {
	got := parseCounts("# Commandstats\r\ncmdstat_get:calls=7,usec=1\r\ncmdstat_set:calls=2,usec=1\r\ncmdstat_client|tracking:calls=1,usec=1\r\ncmdstat_info:calls=99,usec=1\r\n")
	if want := (redisCounts{commands: 9, sets: 2}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestNotesInResultsAreKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "RESULTS.md")
	r := &result{Rounds: leastRounds, Findings: []finding{{Goal: "G1", What: "first", Bound: atLeast(1), Value: 2}}}
	for _, notes := range []string{"\n", "\n\nnginx wins here, for it does less.\n"} {
		if notes != "\n" {
			written, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(written, notes[1:]...), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.writeResults(path); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| G1 | first | 2.00 | ≥ 1.00 | reached |", "nginx wins here, for it does less.\n"} {
		if strings.Count(string(got), want) != 1 {
			t.Errorf("want %q once in:\n%s", want, got)
		}
	}
}

func TestWholeRunIsEstimatedToEndInTime(t *testing.T) {
	if got := estimate(experiments, leastRounds, defaultSeconds*time.Second); got > 25*time.Minute {
		t.Errorf("a whole run takes %v", got)
	}
	few, many := estimate(experiments[:1], 5, time.Second), estimate(experiments[:1], 5, 3*time.Second)
	if many != 3*few-2*experiments[0].once {
		t.Errorf("a second takes %v, three %v, of which %v do not depend on it", few, many, experiments[0].once)
	}
}

func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{{"-only", "G99"}, {"-rounds", "0"}, {"-seconds", "0"}, {"more"}, {"-nothing"}} {
		var said bytes.Buffer
		if code := bench(t.Context(), args, &said, &said); code != exitUsage || said.Len() == 0 {
			t.Errorf("%v: exit code %d, said %q", args, code, &said)
		}
	}
}

// The figures in the documentation are those of RESULTS.md.
func TestDocumentationHasTheFiguresOfTheResults(t *testing.T) {
	results, err := os.ReadFile("RESULTS.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, generate := range generated {
		text, err := os.ReadFile(filepath.Join("..", name))
		if err != nil {
			t.Fatal(err)
		}
		want, err := replaceGenerated(text, results, generate)
		if err != nil || !bytes.Equal(text, want) {
			t.Errorf("%s differs from bench/RESULTS.md (make bench writes both): %v", name, err)
		}
	}
}

func TestDocumentationOfPartOfTheGoalsIsRefused(t *testing.T) {
	r := &result{Rounds: 1, Findings: []finding{{Goal: "G9", What: whatLast, Bound: atLeast(0.95), Value: 1.08}}}
	if _, err := speedTable(r.markdown()); err == nil || !strings.Contains(err.Error(), whatAccepted) {
		t.Errorf("got %v", err)
	}
	table, err := goalsTable(r.markdown())
	for _, want := range []string{"| G9 | " + whatLast + " | 1.08 | ≥ 0.95 | reached |\n", doubtMark + "1 rounds only"} {
		if err != nil || !strings.Contains(table, want) {
			t.Errorf("want %q, got %v\n%s", want, err, table)
		}
	}
}

// TestGatepostIsBuiltWithoutTraces: the last row of a run needs that, and package tracing changes.
func TestGatepostIsBuiltWithoutTraces(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &lab{root: root, dir: dir, bin: dir, progress: t.Output()}
	if _, err := l.buildUntraced(t.Context()); err != nil {
		t.Error(err)
	}
}
