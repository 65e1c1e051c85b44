package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// subject is one design that is measured.
type subject struct {
	name string
	// run puts load on it for a duration and returns the result.
	run func(ctx context.Context, during time.Duration) (outcome, error)
	// check sends requests like a client and checks that valid tokens are accepted and invalid ones
	// are rejected. It is called before, during and after each measurement.
	check func(ctx context.Context) error
	// processes are the processes of which the CPU time is measured.
	processes []*process
}

// sample is what was measured of a subject in a turn, or in a round.
type sample struct {
	Rate     float64            `json:"rate"`   // requests per second
	P50      float64            `json:"p50_ms"` // of the latency
	P99      float64            `json:"p99_ms"`
	Requests int                `json:"requests"`
	CPU      map[string]float64 `json:"cpu_us"`  // µs per request, by process
	Foreign  float64            `json:"foreign"` // share of the machine that others used meanwhile
}

func (s sample) cpu() float64 {
	sum := 0.0
	for _, us := range s.CPU {
		sum += us
	}
	return sum
}

// series are the samples of each subject. :: subject → one per round
type series map[string][]sample

// errBusy means that other processes used the machine, errWrong that a response was wrong. Both
// discard the measurement.
var (
	errBusy  = errors.New("other load on the machine")
	errWrong = errors.New("wrong answers")
)

// turn is the length of one measurement. The speed of a shared machine changes within seconds, so a round has many
// short turns: it affects all subjects alike.
const turn = 500 * time.Millisecond

// warm is the duration of the load before each turn, which is not counted.
const warm = 250 * time.Millisecond

// turns returns the number of turns of each subject in a round.
func turns(during time.Duration) int { return max(1, int(during/turn)) }

// rounds measures all subjects in each round, turn by turn, and reverses their order after each turn.
func (l *lab) rounds(ctx context.Context, subjects []subject) (series, error) {
	all := series{}
	for round := range l.count {
		if err := l.awaitQuiet(ctx); err != nil {
			return nil, err
		}
		measured := series{}
		for n := range turns(l.during) {
			for _, s := range inTurn(subjects, round+n) {
				got, err := l.measure(ctx, s)
				if err != nil {
					return nil, fmt.Errorf("measuring %s: %w", s.name, err)
				}
				measured[s.name] = append(measured[s.name], got)
			}
		}
		for _, s := range subjects {
			got := together(measured[s.name])
			all[s.name] = append(all[s.name], got)
			l.say("round %d/%d  %-28s %8.0f/s  p50 %6.2f ms  p99 %6.2f ms  %6.1f µs CPU %s", round+1, l.count, s.name, got.Rate, got.P50, got.P99, got.cpu(), "= "+byProcess(got.CPU))
		}
		l.say("         %s", l.left())
	}
	return all, nil
}

// together makes one sample of the turns of a round. Its percentiles are the medians of theirs.
func together(turns []sample) sample {
	out := sample{CPU: map[string]float64{}}
	seconds := 0.0
	var p50s, p99s []float64
	for _, t := range turns {
		out.Requests += t.Requests
		seconds += float64(t.Requests) / t.Rate
		p50s, p99s = append(p50s, t.P50), append(p99s, t.P99)
		out.Foreign = max(out.Foreign, t.Foreign)
		for name, us := range t.CPU {
			out.CPU[name] += us * float64(t.Requests)
		}
	}
	for name := range out.CPU {
		out.CPU[name] /= float64(out.Requests)
	}
	out.Rate, out.P50, out.P99 = float64(out.Requests)/seconds, median(p50s), median(p99s)
	return out
}

// inTurn returns the order of a turn.
func inTurn[S any](subjects []S, turn int) []S {
	out := slices.Clone(subjects)
	if turn%2 == 1 {
		slices.Reverse(out)
	}
	return out
}

// tries is how often a measurement is repeated if other processes used the machine.
const tries = 10

// measure measures one subject for a turn, on an idle machine.
func (l *lab) measure(ctx context.Context, s subject) (got sample, err error) {
	for range tries {
		if got, err = l.measureOnce(ctx, s); err == nil || !errors.Is(err, errBusy) {
			return got, err
		}
		l.say("         %-28s again: %v", s.name, err)
		if err := l.awaitQuiet(ctx); err != nil {
			return sample{}, err
		}
	}
	return sample{}, err
}

func (l *lab) measureOnce(ctx context.Context, s subject) (sample, error) {
	if err := s.check(ctx); err != nil {
		return sample{}, err
	}
	if _, err := s.run(ctx, warm); err != nil {
		return sample{}, err
	}
	during, cancel := context.WithCancel(ctx)
	checked := make(chan error, 1)
	before, err := l.account(s.processes)
	if err != nil {
		cancel()
		return sample{}, err
	}
	go func() { checked <- checkOn(during, s.check) }()
	got, err := s.run(ctx, turn)
	cancel()
	err = errors.Join(err, <-checked)
	if err != nil {
		return sample{}, err
	}
	after, err := l.account(s.processes)
	if err != nil {
		return sample{}, err
	}
	if err := s.check(ctx); err != nil {
		return sample{}, err
	}
	foreign := after.machine.foreign(before.machine, after.all.since(before.all).total()+got.cpu.total())
	out := sample{
		Rate: got.rate(), P50: float64(got.P50) / 1000, P99: float64(got.P99) / 1000,
		Requests: got.Requests, CPU: map[string]float64{}, Foreign: foreign,
	}
	for name, d := range after.of.since(before.of) {
		out.CPU[name] = float64(d.Microseconds()) / float64(got.Requests)
	}
	return out, l.quiet(foreign)
}

// checkOn repeats check during a measurement.
func checkOn(ctx context.Context, check func(context.Context) error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond):
		}
		if err := check(context.WithoutCancel(ctx)); err != nil {
			return err
		}
	}
}

// account is the time used so far.
type account struct {
	machine machineTime
	all     usage // everything that the bench started, and the bench itself
	of      usage // the measured processes
}

func (l *lab) account(of []*process) (account, error) {
	machine, err := readMachine()
	if err != nil {
		return account{}, err
	}
	all, err := used(l.processes)
	if err != nil {
		return account{}, err
	}
	all["bench"] = ownCPU()
	some, err := used(of)
	return account{machine, all, some}, err
}

// quiet returns an error if other processes used too much of the machine. With -force it only
// records that.
func (l *lab) quiet(foreign float64) error {
	l.mostForeign = max(l.mostForeign, foreign)
	if foreign > l.tolerance && !l.force {
		return fmt.Errorf("%w: it took %.0f%% of the CPU time meanwhile", errBusy, foreign*100)
	}
	return nil
}

// awaitQuiet waits until the machine is idle except for the bench's own processes, for at most the
// lab's patience.
func (l *lab) awaitQuiet(ctx context.Context) error {
	said := false
	for end := time.Now().Add(l.patience); ; {
		before, err := l.account(nil)
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
		after, err := l.account(nil)
		if err != nil {
			return err
		}
		foreign := after.machine.foreign(before.machine, after.all.since(before.all).total())
		if foreign <= l.tolerance || l.force {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: it takes %.0f%% of the CPU time, and the machine was not idle for %v (-force measures anyway, and reports it)", errBusy, foreign*100, l.patience)
		}
		if !said {
			l.say("         waiting: others use %.0f%% of the CPU time", foreign*100)
			said = true
		}
	}
}

// ratios returns the ratio of two subjects' figures for each round.
func (s series) ratios(over, under string, figure func(sample) float64) []float64 {
	out := make([]float64, 0, len(s[over]))
	for i := range min(len(s[over]), len(s[under])) {
		out = append(out, figure(s[over][i])/figure(s[under][i]))
	}
	return out
}

func rate(s sample) float64 { return s.Rate }
func p50(s sample) float64  { return s.P50 }
func cpu(s sample) float64  { return s.cpu() }

// median returns the median of the figures, or 0 if there are none.
func median(figures []float64) float64 {
	sorted := slices.Sorted(slices.Values(figures))
	n := len(sorted)
	switch {
	case n == 0:
		return 0
	case n%2 == 1:
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
