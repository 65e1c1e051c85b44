package e2e

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// history records all calls of the clients and their results with one clock, because all clients
// are in this process. [history.violations] evaluates it afterwards and uses nothing else.
type history struct {
	start time.Time
	// lifetime is the lifetime of a token, and grace how long a refreshed token stays valid.
	lifetime, grace time.Duration

	mu     sync.Mutex
	tokens []*minted
	uses   []use
	ends   []ending
	calm   []span
	apart  []span
}

// span is the time from the start of a call to its response, since the start of the history. The
// gateway processed the call within it.
type span struct{ From, To time.Duration }

// minted is a token that a gateway issued.
type minted struct {
	span
	Text, User string
	// Session is shared by the tokens of one session, which a refresh continues.
	Session int
	// Before is the token that was refreshed, or nil after a login.
	Before *minted
}

// verdict is the result of a use.
type verdict int

const (
	accepted verdict = iota
	refused          // 401, or 504 if the token expired on the way
	unsure           // 503, no response, or none in time of a call below /token
	odd              // any other response
)

// use is one request with a token.
type use struct {
	span
	Token   *minted
	Gateway int
	// How is how the token was sent; Answer is the response as text.
	How, Answer string
	Verdict     verdict
	// Identity is the user that the service received.
	Identity string
}

// ending is one attempt to end the session of a token, or all sessions of its user.
type ending struct {
	span
	Token   *minted
	Gateway int
	How     string
	// If Everywhere is true, all sessions of the user are ended.
	Everywhere bool
	// Handover marks a refresh. It ends the token after the grace, the previous token at once, and
	// the whole session in case of reuse.
	Handover bool
	// Acknowledged reports whether the gateway confirmed the call. Otherwise it may have happened,
	// or may happen at any later time.
	Acknowledged bool
}

// expiryMargin is the tolerance for a token's expiry, because stores round times to whole units.
const expiryMargin = time.Second

func newHistory(lifetime, grace time.Duration) *history {
	return &history{start: time.Now(), lifetime: lifetime, grace: grace}
}

func (h *history) now() time.Duration { return time.Since(h.start) }

// since returns the span of a call that started at from and ends now.
func (h *history) since(from time.Duration) span { return span{from, h.now()} }

// minted records a token. If several refreshes returned the same token, it is recorded once.
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

func (h *history) used(u use)     { record(h, &h.uses, u) }
func (h *history) ended(e ending) { record(h, &h.ends, e) }

// wasCalm records a time span without faults or their consequences.
func (h *history) wasCalm(s span) { record(h, &h.calm, s) }

// wasApart records a time span in which a replaced master of a Cluster may not have noticed. It may
// reject a token that the new master minted; it must not accept a revoked one.
func (h *history) wasApart(s span) { record(h, &h.apart, s) }

// record appends to a list of a history.
func record[E any](h *history, list *[]E, one E) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*list = append(*list, one)
}

func (h *history) wasApartDuring(s span) bool {
	return slices.ContainsFunc(h.apart, func(apart span) bool { return apart.From <= s.To && s.From <= apart.To })
}

// fate is what is known about a token's end.
type fate struct {
	// The token ended at the earliest at doubtful, and at the latest at dead. forever means never.
	doubtful, dead time.Duration
	// by is the ending that determines dead.
	by string
}

// fates derives the fates from the minted tokens, the endings and the lifetime.
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

// dateBack sets the earliest time at which a token of a refresh may exist: the first attempt, if
// that got no response.
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

// handOver applies a refresh to the fates of the presented token and of the one before.
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

// doubt records that a token may have ended at a time.
func doubt(fates map[*minted]fate, m *minted, at time.Duration) {
	f := fates[m]
	f.doubtful = min(f.doubtful, at)
	fates[m] = f
}

// violations returns the uses with a wrong result, in the order in which they began.
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

// forks returns the tokens that several refreshes exchanged for different ones.
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

// silence reports if more than a tenth of the uses got no response without a fault. An overloaded
// machine may cause a few timeouts.
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
	return []string{fmt.Sprintf("%d of %d uses got no response without a fault, the last: %s", without, all, answer)}
}

// judge returns what is wrong with a use, or "".
func (h *history) judge(u use, f fate) string {
	switch {
	case u.Verdict == accepted && u.Identity != u.Token.User:
		return fmt.Sprintf("taken for %q", u.Identity)
	case u.Verdict == accepted && u.From > f.dead:
		return fmt.Sprintf("accepted though it began %v after the end (%s)", u.From-f.dead, f.by)
	case u.Verdict == refused && u.To < f.doubtful && !h.wasApartDuring(u.span):
		return "refused though it lives"
	case u.Verdict == odd:
		return "got " + u.Answer
	}
	return ""
}

func (s span) String() string {
	return fmt.Sprintf("%v to %v", s.From.Round(time.Microsecond), s.To.Round(time.Microsecond))
}

func (u use) String() string {
	return fmt.Sprintf("%v: %s at gateway %d of %s's token of %v", u.span, u.How, u.Gateway, u.Token.User, u.Token.To.Round(time.Microsecond))
}

// story lists everything that a user did, for the report of a violation.
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

// living and dead return the tokens that are certainly valid for a while, or certainly ended.
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

// latest returns up to n of the most recently minted tokens.
func (h *history) latest(n int) []*minted {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.tokens[max(0, len(h.tokens)-n):])
}

// count returns the number of uses with a verdict at a gateway.
func (h *history) count(v verdict, gateway int) (n int) {
	for _, u := range h.uses {
		if u.Verdict == v && u.Gateway == gateway {
			n++
		}
	}
	return n
}

// refreshes counts the acknowledged refreshes, and those of them that returned an already issued
// token.
func (h *history) refreshes() (all, repeated int) {
	h.mu.Lock()
	defer h.mu.Unlock()
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

// leaks returns which of the named texts contain a token, or the middle half of one.
func (h *history) leaks(texts map[string]string) []string {
	const width = 16 // less than half of a token in either format
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
