// Command bench measures Gatepost and its peers, and reports for each of the project's performance
// goals whether it is reached: `make bench`, or `go run -C bench . -only G1,G3`. It builds and
// starts everything on loopback.
//
// Designs are measured in turn, for half a second each, in at least five rounds of several turns. A goal is the
// median of the rounds' ratios. CPU time comes from the processes' own accounts. The bench measures
// only if no other processes use the machine. A single wrong response fails the run, and during the
// load the bench checks that invalid tokens are rejected.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// experiment measures one or more goals.
type experiment struct {
	goals []string
	// perRound is the number of measurements in each round, and once the time for the rest. Both are for the estimate.
	perRound int
	once     time.Duration
	run      func(ctx context.Context, l *lab, wanted func(goal string) bool) ([]finding, error)
}

// experiments are all experiments in order.
var experiments = []experiment{
	{[]string{"G1", "G2", "G4", "G5", "G6", "G13"}, 13, 40 * time.Second, dataPathGoals},
	{[]string{"G3"}, 3, 10 * time.Second, serverGoal},
	{[]string{"G7"}, 0, 30 * time.Second, redisGoal},
	{[]string{"G8"}, 1, 10 * time.Second, revokeGoal},
	{[]string{"G11"}, 2, 15 * time.Second, loginGoal},
	{[]string{"G12"}, 0, 90 * time.Second, tokensMemoryGoal},
	{[]string{"G9", "G10", "G12"}, 4, time.Minute, servicesGoals},
	{[]string{"G13"}, 5, 3 * time.Minute, costGoal},
}

// estimate returns how long experiments take on an idle machine, about.
func estimate(some []experiment, rounds int, during time.Duration) time.Duration {
	var sum time.Duration
	for _, e := range some {
		sum += e.once + time.Duration(rounds*e.perRound*turns(during))*(warm+turn+200*time.Millisecond) // the last for the checks
	}
	return sum
}

// settings are the command line flags.
type settings struct {
	only                          string
	rounds, seconds               int
	patience                      time.Duration
	tolerance                     float64
	force                         bool
	jsonFile, results, show, docs string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := bench(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// The exit codes.
const (
	exitDone   = 0 // measured; the table shows which goals are reached
	exitFailed = 1
	exitUsage  = 2
)

func bench(ctx context.Context, args []string, out, progress io.Writer) int {
	s, err := parse(args, progress)
	if err != nil {
		return exitUsage
	}
	if s.show != "" {
		err = showAgain(s, out)
	} else {
		err = measureAll(ctx, s, out, progress)
	}
	if err != nil {
		fmt.Fprintf(progress, "bench: %v\n", err)
		return exitFailed
	}
	return exitDone
}

func parse(args []string, progress io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(progress)
	flags.Usage = func() {
		fmt.Fprintf(progress, "Usage of bench:\n")
		flags.PrintDefaults()
		fmt.Fprintf(progress, "%s and %s name the programs of two peers:\nopa with the plugin envoy_ext_authz_grpc, and oathkeeper.\n", envOPA, envOath)
	}
	flags.StringVar(&s.only, "only", "", "the `GOALS` to measure, such as G1,G3 (none: all)")
	flags.IntVar(&s.rounds, "rounds", leastRounds, "how many rounds; fewer than five are for trying out, and the result says so")
	flags.IntVar(&s.seconds, "seconds", defaultSeconds, "how long each design is measured in a round, in turns of half a second")
	flags.DurationVar(&s.patience, "patience", 10*time.Minute, "for how long other load on the machine is waited out")
	flags.Float64Var(&s.tolerance, "tolerance", 0.08, "the share of the machine's CPU time that others may use meanwhile")
	flags.BoolVar(&s.force, "force", false, "measure under other load too; the result says so")
	flags.StringVar(&s.jsonFile, "json", "", "also write the result to `FILE`, as JSON")
	flags.StringVar(&s.results, "results", "", "also write the result to `FILE`, as Markdown; what stands there below the line of notes stays")
	flags.StringVar(&s.docs, "docs", "", "also write the figures of a whole run into README.md and docs/performance.md of the project in `FOLDER`")
	flags.StringVar(&s.show, "show", "", "measure nothing: show the result that -json wrote to `FILE`")
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	for _, goal := range s.goals() {
		if !slices.ContainsFunc(experiments, func(e experiment) bool { return slices.Contains(e.goals, goal) }) {
			fmt.Fprintf(progress, "bench: there is no goal %q\n", goal)
			return s, errUsage
		}
	}
	if flags.NArg() > 0 || s.rounds < 1 || s.seconds < 1 {
		fmt.Fprintln(progress, "bench: at least one round, and at least a second for each measurement; see -h")
		return s, errUsage
	}
	return s, nil
}

var errUsage = errors.New("wrong usage")

const (
	// leastRounds is the minimum number of rounds of a result.
	leastRounds = 5
	// defaultSeconds is how long a design is measured in a round. A whole run takes less than 25 minutes with it.
	defaultSeconds = 3
)

func (s settings) goals() []string {
	return strings.FieldsFunc(strings.ToUpper(s.only), func(r rune) bool { return r == ',' || r == ' ' })
}

func (s settings) wants(goal string) bool {
	goals := s.goals()
	return len(goals) == 0 || slices.Contains(goals, goal)
}

func measureAll(ctx context.Context, s settings, out, progress io.Writer) error {
	if runtime.GOOS != "linux" {
		return errors.New("the bench needs Linux: it reads the accounts of processes in /proc")
	}
	if s.wants("G13") {
		if _, err := find("valgrind", "apt-get install valgrind"); err != nil {
			return err
		}
	}
	l := &lab{count: s.rounds, during: time.Duration(s.seconds) * time.Second, patience: s.patience, tolerance: s.tolerance, force: s.force, progress: progress}
	defer func() { l.close() }()
	if err := l.open(ctx); err != nil {
		return err
	}
	result := result{Machine: describe(ctx, l), Date: time.Now().UTC(), Rounds: s.rounds, Seconds: s.seconds, Forced: s.force}
	wanted := slices.DeleteFunc(slices.Clone(experiments), func(e experiment) bool { return !slices.ContainsFunc(e.goals, s.wants) })
	for i, e := range wanted {
		l.ends = time.Now().Add(estimate(wanted[i:], l.count, l.during))
		goals := strings.Join(slices.DeleteFunc(slices.Clone(e.goals), func(g string) bool { return !s.wants(g) }), ", ")
		l.say("experiment %d of %d: %s; %s", i+1, len(wanted), goals, l.left())
		findings, err := e.run(ctx, l, s.wants)
		if err != nil {
			return err
		}
		result.Findings = append(result.Findings, findings...)
	}
	result.Series, result.Counts, result.MostForeign = l.kept, l.counts, l.mostForeign
	result.sort()
	return result.write(s, out)
}
