package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// history is all that clients did to the gateways and what came of it, by one clock: all clients are this process. What it
// proves is decided afterwards, by [history.violations], which looks at nothing else.
type history struct {
	start time.Time
	// lifetime is for how long a token opens services, and grace for how long a refreshed one does.
	lifetime, grace time.Duration

	mu     sync.Mutex
	tokens []*minted
	uses   []use
	ends   []ending
	calm   []span
	apart  []span
}

// span is from when a client began a call to when it had the answer, counted from the start of the history. What
// the gateway did, it did in between.
type span struct{ From, To time.Duration }

// minted is a token that a gateway handed out.
type minted struct {
	span
	Text, User string
	// Session is shared by the tokens of one session, which a refresh hands on.
	Session int
	// Before is the token that was refreshed for it; nil: a login.
	Before *minted
}

// verdict is what came of a use.
type verdict int

const (
	accepted verdict = iota
	refused          // 401, or 504 if the token expired on the way
	unsure           // 503, or no answer at all
	odd              // any other answer
)

// use is one try to open something with a token.
type use struct {
	span
	Token   *minted
	Gateway int
	// How the token was used, and what was answered in words.
	How, Answer string
	Verdict     verdict
	// Identity is whose token it was taken for.
	Identity string
}

// ending is one try to end sessions: the one of the token, or all of the token's user.
type ending struct {
	span
	Token   *minted
	Gateway int
	How     string
	// Everywhere: all sessions of the user are meant.
	Everywhere bool
	// Handover: a refresh. It ends the token's grace in time, that of the token before at once, and the whole session if
	// it is a reuse.
	Handover bool
	// Acknowledged: the gateway said that it is done. Else it may have been done, or be done at any time later.
	Acknowledged bool
}

// expiryMargin is how far a gateway's reading of a token's end may be from the test's: stores count in whole units.
const expiryMargin = time.Second

func newHistory(lifetime, grace time.Duration) *history {
	return &history{start: time.Now(), lifetime: lifetime, grace: grace}
}

func (h *history) now() time.Duration { return time.Since(h.start) }

// since is the span of a call that began at the time from and has its answer now.
func (h *history) since(from time.Duration) span { return span{from, h.now()} }

// minted takes down a token that a gateway handed out. What several refreshes were given is one token.
func (h *history) minted(m minted) *minted {
	h.mu.Lock()
	defer h.mu.Unlock()
	same := func(known *minted) bool { return known.Before == m.Before && known.Text == m.Text }
	if at := slices.IndexFunc(h.tokens, same); m.Before != nil && at >= 0 {
		known := h.tokens[at]
		known.From, known.To = min(known.From, m.From), min(known.To, m.To)
		return known
	}
	if m.Session == 0 {
		m.Session = len(h.tokens) + 1
	}
	h.tokens = append(h.tokens, &m)
	return &m
}

func (h *history) used(u use) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.uses = append(h.uses, u)
}

func (h *history) ended(e ending) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ends = append(h.ends, e)
}

// wasCalm notes a time in which nothing was done to the gateways or to Redis, nor the consequences of it lasted.
func (h *history) wasCalm(s span) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calm = append(h.calm, s)
}

// wasApart notes a time in which a master of a Cluster may not have known yet that it was replaced. It may refuse a
// token that the new master has minted; it must not accept one that was revoked.
func (h *history) wasApart(s span) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.apart = append(h.apart, s)
}

func (h *history) wasApartDuring(s span) bool {
	return slices.ContainsFunc(h.apart, func(apart span) bool { return apart.From <= s.To && s.From <= apart.To })
}

// fate is what may be known of a token's end.
type fate struct {
	// doubtful is when it may have ended at the earliest; dead is from when on it has for certain. forever: never.
	doubtful, dead time.Duration
	// by is the ending that is the reason for dead.
	by string
}

// fates follows from what was minted, from the endings and from the lifetime.
func (h *history) fates() map[*minted]fate {
	h.dateBack()
	bySession, byUser := map[int][]*minted{}, map[string][]*minted{}
	fates := make(map[*minted]fate, len(h.tokens))
	for _, m := range h.tokens {
		bySession[m.Session] = append(bySession[m.Session], m)
		byUser[m.User] = append(byUser[m.User], m)
		fates[m] = fate{
			doubtful: m.From + h.lifetime - expiryMargin,
			dead:     m.To + h.lifetime + expiryMargin,
			by:       "it expired",
		}
	}
	for _, e := range h.ends {
		meant := bySession[e.Token.Session]
		if e.Everywhere {
			meant = byUser[e.Token.User]
		}
		if e.Handover {
			h.handOver(fates, e)
			continue
		}
		for _, m := range meant {
			if e.Acknowledged && m.From >= e.To {
				continue // a new one
			}
			f := fates[m]
			f.doubtful = min(f.doubtful, e.From)
			if e.Acknowledged && m.To <= e.From && e.To < f.dead {
				f.dead, f.by = e.To, fmt.Sprintf("%s by gateway %d", e.How, e.Gateway)
			}
			fates[m] = f
		}
	}
	for _, e := range h.ends {
		if e.Handover && fates[e.Token].doubtful < e.To { // it may have been a reuse, which ends the session
			for _, m := range bySession[e.Token.Session] {
				doubt(fates, m, e.From)
			}
		}
	}
	return fates
}

// dateBack sets from when on a token that a refresh gave may have been there: since the first try, if that had no answer.
func (h *history) dateBack() {
	first := map[*minted]time.Duration{}
	for _, e := range h.ends {
		if at, known := first[e.Token]; e.Handover && (!known || e.From < at) {
			first[e.Token] = e.From
		}
	}
	for _, m := range h.tokens {
		if at, refreshed := first[m.Before]; refreshed {
			m.From = min(m.From, at)
		}
	}
}

// handOver adds to the fates what a refresh means for the token that was presented and for the one before.
func (h *history) handOver(fates map[*minted]fate, e ending) {
	doubt(fates, e.Token, e.From+h.grace-expiryMargin)
	if e.Token.Before != nil {
		doubt(fates, e.Token.Before, e.From)
	}
	if f, dead := fates[e.Token], e.To+h.grace+expiryMargin; e.Acknowledged && dead < f.dead {
		f.dead, f.by = dead, "its grace was over"
		fates[e.Token] = f
	}
}

// doubt says that a token may have ended at a time.
func doubt(fates map[*minted]fate, m *minted, at time.Duration) {
	f := fates[m]
	f.doubtful = min(f.doubtful, at)
	fates[m] = f
}

// violations are the uses that must not have come out as they did, in the order in which they began.
func (h *history) violations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	fates := h.fates()
	slices.SortFunc(h.uses, func(a, b use) int { return cmp.Compare(a.From, b.From) })
	var all []string
	for _, u := range h.uses {
		if wrong := h.judge(u, fates[u.Token]); wrong != "" {
			all = append(all, fmt.Sprintf("%s: %s%s", u, wrong, h.story(u.Token.User)))
		}
	}
	return append(append(all, h.forks()...), h.silence()...)
}

// forks are the tokens that several refreshes exchanged for different ones.
func (h *history) forks() (all []string) {
	next := map[*minted]*minted{}
	for _, m := range h.tokens {
		if m.Before == nil {
			continue
		}
		if next[m.Before] != nil {
			all = append(all, fmt.Sprintf("two refreshes of one token gave two tokens%s", h.story(m.User)))
		}
		next[m.Before] = m
	}
	return all
}

// silence is what is wrong where more than a tenth of the uses had no answer while nothing was wrong: a machine
// that has more to do than it can may let the one or other run into a time-out.
func (h *history) silence() []string {
	all, without, answer := 0, 0, ""
	for _, u := range h.uses {
		if !h.inCalm(u.span) {
			continue
		}
		all++
		if u.Verdict == unsure {
			without, answer = without+1, u.Answer
		}
	}
	if 10*without <= all {
		return nil
	}
	return []string{fmt.Sprintf("%d of %d uses were not answered though nothing was wrong, the last: %s", without, all, answer)}
}

// judge says what is wrong with a use, or nothing.
func (h *history) judge(u use, f fate) string {
	switch {
	case u.Verdict == accepted && u.Identity != u.Token.User:
		return fmt.Sprintf("taken for %q", u.Identity)
	case u.Verdict == accepted && u.From > f.dead:
		return fmt.Sprintf("accepted though it began %v after the end (%s)", u.From-f.dead, f.by)
	case u.Verdict == refused && u.To < f.doubtful && !h.wasApartDuring(u.span):
		return "refused though it lives"
	case u.Verdict == odd:
		return "answered " + u.Answer
	}
	return ""
}

func (s span) String() string {
	return fmt.Sprintf("%v to %v", s.From.Round(time.Microsecond), s.To.Round(time.Microsecond))
}

func (u use) String() string {
	return fmt.Sprintf("%v: %s at gateway %d of %s's token of %v", u.span, u.How, u.Gateway, u.Token.User, u.Token.To.Round(time.Microsecond))
}

// story is all that a user did, for the report of what was wrong.
func (h *history) story(user string) string {
	type event struct {
		from time.Duration
		text string
	}
	var all []event
	for _, m := range h.tokens {
		if m.User == user {
			all = append(all, event{m.From, fmt.Sprintf("%v: token %d of session %d", m.span, slices.Index(h.tokens, m)+1, m.Session)})
		}
	}
	for _, e := range h.ends {
		if e.Token.User == user {
			all = append(all, event{e.From, fmt.Sprintf("%v: %s at gateway %d by token %d, acknowledged: %v",
				e.span, e.How, e.Gateway, slices.Index(h.tokens, e.Token)+1, e.Acknowledged)})
		}
	}
	for _, u := range h.uses {
		if u.Token.User == user {
			all = append(all, event{u.From, fmt.Sprintf("%v: use of token %d at gateway %d by %s: %s",
				u.span, slices.Index(h.tokens, u.Token)+1, u.Gateway, u.How, u.Answer)})
		}
	}
	slices.SortFunc(all, func(a, b event) int { return cmp.Compare(a.from, b.from) })
	var b strings.Builder
	for _, e := range all {
		b.WriteString("\n\t" + e.text)
	}
	return b.String()
}

func (h *history) inCalm(s span) bool {
	return slices.ContainsFunc(h.calm, func(calm span) bool { return calm.From <= s.From && s.To <= calm.To })
}

// living and dead are the tokens of which it is certain that they live for a while yet, or that they are dead.
func (h *history) living() []*minted {
	soon := h.now() + 5*time.Second
	return h.those(func(f fate) bool { return f.doubtful > soon })
}

func (h *history) dead() []*minted {
	now := h.now()
	return h.those(func(f fate) bool { return f.dead < now && f.by != "it expired" })
}

func (h *history) those(are func(fate) bool) []*minted {
	h.mu.Lock()
	defer h.mu.Unlock()
	fates := h.fates()
	var found []*minted
	for _, m := range h.tokens {
		if are(fates[m]) {
			found = append(found, m)
		}
	}
	return found
}

// latest are the tokens that were minted last, n at the most.
func (h *history) latest(n int) []*minted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.tokens[max(0, len(h.tokens)-n):])
}

// count says how many uses had a verdict at a gateway.
func (h *history) count(v verdict, gateway int) (n int) {
	for _, u := range h.uses {
		if u.Verdict == v && u.Gateway == gateway {
			n++
		}
	}
	return n
}

// refreshes counts the refreshes that were acknowledged, and those of them that gave a token which was given before.
func (h *history) refreshes() (all, repeated int) {
	for _, e := range h.ends {
		if e.Handover && e.Acknowledged {
			all++
		}
	}
	repeated = all
	for _, m := range h.tokens {
		if m.Before != nil {
			repeated--
		}
	}
	return all, repeated
}

// leaks says in which of the texts, which are named, there is a token, or the middle half of one.
func (h *history) leaks(texts map[string]string) []string {
	const width = 16 // less than half of a token of either form
	middles := make(map[string]bool, len(h.tokens))
	for _, m := range h.tokens {
		if at := (len(m.Text) - width) / 2; at >= 0 {
			middles[strings.ToLower(m.Text[at:at+width])] = true
		}
	}
	var found []string
	for name, text := range texts {
		text = strings.ToLower(text)
		for i := 0; i+width <= len(text); i++ {
			if middles[text[i:i+width]] {
				found = append(found, fmt.Sprintf("%s: a token in %q", name, lineAround(text, i)))
				break
			}
		}
	}
	return found
}

func lineAround(text string, at int) string {
	from := strings.LastIndexByte(text[:at], '\n') + 1
	line, _, _ := strings.Cut(text[from:], "\n")
	return line[:min(len(line), 400)]
}
