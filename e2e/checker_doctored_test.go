package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestCheckerFindsViolations tests the checker itself with constructed histories: correct ones, and
// others with one violation each.
func TestCheckerFindsViolations(t *testing.T) {
	t.Parallel()
	s := func(from, to int) span {
		return span{time.Duration(from) * time.Millisecond, time.Duration(to) * time.Millisecond}
	}
	cases := map[string]struct {
		made func(h *history, ann, ben *minted)
		want string // part of the single violation; empty if there is none
	}{
		"a life": {made: func(h *history, ann, ben *minted) {
			h.used(use{span: s(20, 30), Token: ann, Verdict: accepted, Identity: "ann"})
			h.ended(ending{span: s(40, 50), Token: ann, Acknowledged: true})
			h.used(use{span: s(45, 80), Token: ann, Verdict: accepted, Identity: "ann"}) // started before the revoke returned
			h.used(use{span: s(45, 80), Token: ann, Verdict: refused})
			h.used(use{span: s(60, 70), Token: ann, Verdict: refused})
			h.used(use{span: s(60, 70), Token: ann, Verdict: unsure})
			h.used(use{span: s(60, 70), Token: ben, Verdict: accepted, Identity: "ben"})
		}},
		"an acceptance after a revoke": {want: "accepted though it began 10ms after the end (POST /token/revoke by gateway 1)", made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, How: "POST /token/revoke", Gateway: 1, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance after the first of two revokes": {want: "accepted", made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 90), Token: ann, Acknowledged: true})
			h.ended(ending{span: s(40, 50), Token: ann, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance after a revoke that nobody acknowledged": {made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann})
			h.used(use{span: s(60, 70), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance after all of the user's sessions were ended": {want: "accepted", made: func(h *history, ann, _ *minted) {
			other := h.minted(minted{span: s(12, 13), Text: "z", User: "ann"})
			h.ended(ending{span: s(40, 50), Token: other, Everywhere: true, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance of a refreshed token whose session was ended": {want: "accepted", made: func(h *history, ann, _ *minted) {
			next := h.minted(minted{span: s(20, 30), Text: "z", User: "ann", Session: ann.Session})
			h.ended(ending{span: s(40, 50), Token: ann, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: next, Verdict: accepted, Identity: "ann"})
		}},
		"a session opened while the others were ended, and one after": {made: func(h *history, ann, _ *minted) {
			during := h.minted(minted{span: s(45, 48), Text: "y", User: "ann"})
			after := h.minted(minted{span: s(51, 52), Text: "z", User: "ann"})
			h.ended(ending{span: s(40, 50), Token: ann, Everywhere: true, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: during, Verdict: accepted, Identity: "ann"})
			h.used(use{span: s(60, 70), Token: during, Verdict: refused})
			h.used(use{span: s(60, 70), Token: after, Verdict: accepted, Identity: "ann"})
		}},
		"a refusal of a session opened after the others were ended": {want: "refused though it lives", made: func(h *history, ann, _ *minted) {
			after := h.minted(minted{span: s(51, 52), Text: "z", User: "ann"})
			h.ended(ending{span: s(40, 50), Token: ann, Everywhere: true, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: after, Verdict: refused})
		}},
		"a refusal of a live token": {want: "refused though it lives", made: func(h *history, ann, ben *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ben, Verdict: refused})
		}},
		"a refusal before the revoke began": {want: "refused though it lives", made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(20, 30), Token: ann, Verdict: refused})
			h.ended(ending{span: s(40, 50), Token: ann, Acknowledged: true})
		}},
		"a refusal in the grace": {want: "refused though it lives", made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: refused})
		}},
		"a refusal and an acceptance about the end of the grace": {made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.used(use{span: s(9_500, 9_600), Token: ann, Verdict: refused})
			h.used(use{span: s(10_500, 10_600), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance after the grace": {want: "after the end (its grace was over)", made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.used(use{span: s(11_060, 11_070), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"an acceptance after a refresh that nobody acknowledged": {made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true})
			h.used(use{span: s(11_060, 11_070), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"a refusal in the grace after the new token was refreshed": {made: func(h *history, ann, _ *minted) {
			next := h.minted(minted{span: s(40, 50), Text: "z", User: "ann", Session: ann.Session, Before: ann})
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.ended(ending{span: s(55, 80), Token: next, Handover: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: refused})
		}},
		"a refusal of all after a reuse": {made: func(h *history, ann, _ *minted) {
			next := h.minted(minted{span: s(40, 50), Text: "z", User: "ann", Session: ann.Session, Before: ann})
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.ended(ending{span: s(9_500, 9_600), Token: ann, Handover: true})
			h.used(use{span: s(9_700, 9_800), Token: next, Verdict: refused})
		}},
		"a refusal of the new token after a repeated refresh": {want: "refused though it lives", made: func(h *history, ann, _ *minted) {
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true})
			h.ended(ending{span: s(60, 70), Token: ann, Handover: true, Acknowledged: true})
			next := h.minted(minted{span: s(60, 70), Text: "z", User: "ann", Session: ann.Session, Before: ann})
			h.used(use{span: s(80, 90), Token: next, Verdict: refused})
		}},
		"one token for two refreshes": {made: func(h *history, ann, _ *minted) {
			for _, at := range []span{s(40, 50), s(45, 60)} {
				h.ended(ending{span: at, Token: ann, Handover: true, Acknowledged: true})
				next := h.minted(minted{span: at, Text: "z", User: "ann", Session: ann.Session, Before: ann})
				h.used(use{span: s(70, 80), Token: next, Verdict: accepted, Identity: "ann"})
			}
		}},
		"two tokens for two refreshes": {want: "gave two tokens", made: func(h *history, ann, _ *minted) {
			for i, at := range []span{s(40, 50), s(45, 60)} {
				h.ended(ending{span: at, Token: ann, Handover: true, Acknowledged: true})
				h.minted(minted{span: at, Text: string(rune('x' + 1 + i)), User: "ann", Session: ann.Session, Before: ann})
			}
		}},
		"an acceptance of both tokens after an end": {want: "accepted", made: func(h *history, ann, _ *minted) {
			next := h.minted(minted{span: s(20, 30), Text: "z", User: "ann", Session: ann.Session, Before: ann})
			h.ended(ending{span: s(20, 30), Token: ann, Handover: true, Acknowledged: true})
			h.ended(ending{span: s(40, 50), Token: next, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: ann, Verdict: accepted, Identity: "ann"})
			h.used(use{span: s(60, 70), Token: next, Verdict: refused})
		}},
		"a refusal of what a refresh gave": {want: "refused though it lives", made: func(h *history, ann, _ *minted) {
			next := h.minted(minted{span: s(40, 50), Text: "z", User: "ann", Session: ann.Session})
			h.ended(ending{span: s(40, 50), Token: ann, Handover: true, Acknowledged: true})
			h.used(use{span: s(60, 70), Token: next, Verdict: refused})
		}},
		"a foreign identity": {want: `taken for "ben"`, made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(20, 30), Token: ann, Verdict: accepted, Identity: "ben"})
		}},
		"no identity": {want: `taken for ""`, made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(20, 30), Token: ann, Verdict: accepted})
		}},
		"no responses without a fault": {want: "2 of 11 uses got no response without a fault, the last: 503", made: func(h *history, ann, _ *minted) {
			h.wasCalm(s(0, 50))
			for range 9 {
				h.used(use{span: s(20, 30), Token: ann, Verdict: accepted, Identity: "ann"})
			}
			for range 2 {
				h.used(use{span: s(20, 30), Token: ann, Verdict: unsure, Answer: "503"})
			}
		}},
		"one missing response of ten": {made: func(h *history, ann, _ *minted) {
			h.wasCalm(s(0, 50))
			for range 9 {
				h.used(use{span: s(20, 30), Token: ann, Verdict: accepted, Identity: "ann"})
			}
			h.used(use{span: s(20, 30), Token: ann, Verdict: unsure, Answer: "503"})
		}},
		"no answer when it was no longer well": {made: func(h *history, ann, _ *minted) {
			h.wasCalm(s(0, 50))
			h.used(use{span: s(20, 60), Token: ann, Verdict: unsure, Answer: "503"})
		}},
		"an odd response": {want: "got 500", made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(20, 30), Token: ann, Verdict: odd, Answer: "500"})
		}},
		"an acceptance after its time": {want: "accepted", made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(61_012, 61_013), Token: ann, Verdict: accepted, Identity: "ann"})
		}},
		"a refusal after its time": {made: func(h *history, ann, _ *minted) {
			h.used(use{span: s(61_012, 61_013), Token: ann, Verdict: refused})
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			h := newHistory(time.Minute, 10*time.Second)
			ann := h.minted(minted{span: s(1, 11), Text: "x", User: "ann"})
			ben := h.minted(minted{span: s(2, 12), Text: "y", User: "ben"})
			c.made(h, ann, ben)
			switch got := h.violations(); {
			case c.want == "" && len(got) > 0:
				t.Errorf("found %q, want no violation", got)
			case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
				t.Errorf("found %q, want one with %q", got, c.want)
			}
		})
	}
}

func TestCheckerFindsATokenInALog(t *testing.T) {
	t.Parallel()
	const uuid, secret = "0b6f3ad2-9c1e-4f57-8a34-d2c1b0a99f10", "gp1_Zm9vYmFyYmF6cXV4MDEyMzQ1Njc4OWFiY2RlZmdoaWo0000abcd1234"
	h := newHistory(time.Minute, 10*time.Second)
	h.minted(minted{Text: uuid})
	h.minted(minted{Text: secret})
	for text, leaks := range map[string]bool{
		"": false, "a line\nand another": false, "an id: 1c6f3ad2-0000-4f57-8a34-d2c1b0a99f10\n": false,
		"first\nGET /?t=" + uuid + " 200\nlast":     true,
		strings.ToUpper(uuid):                       true,
		uuid[4:30]:                                  true, // truncated, as some loggers do
		`{"authorization":"Bearer ` + secret + `"}`: true,
	} {
		got := h.leaks(map[string]string{"envoy": text})
		if found := len(got) == 1 && strings.HasPrefix(got[0], "envoy: "); found != leaks || len(got) > 1 {
			t.Errorf("%q: found %q", text, got)
		}
	}
}
