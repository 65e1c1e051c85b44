package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"gatepost/convention"
	"gatepost/definitions"
	"gatepost/definitions/revisions"
	"gatepost/tokens/shield"
)

// Revisions are the definitions that were served before, and now.
type Revisions interface {
	// History returns all revisions, the newest first.
	History(ctx context.Context) ([]revisions.Revision, error)
	About(ctx context.Context, number int64) (revisions.Revision, error)
	Text(ctx context.Context, r revisions.Revision) ([]byte, error)
	Load(ctx context.Context, r revisions.Revision) (*definitions.Definitions, error)
	// Rollback makes the definitions of a revision the newest. If base is not 0 and another revision is the newest, the
	// error is a revisions.Conflict. It does not wait until they are served.
	Rollback(ctx context.Context, r revisions.Revision, base int64, note revisions.Note) error
}

// Revision is a revision in the admin API.
type Revision struct {
	Number  int64     `json:"number"`
	Stored  time.Time `json:"stored"`
	Who     string    `json:"who"`
	Message string    `json:"message,omitempty"`
	Change  string    `json:"change"`
	SHA256  string    `json:"sha256"`
	// Text is the file. It is left out in lists.
	Text string `json:"text,omitempty"`
}

func newRevision(r revisions.Revision) Revision {
	return Revision{Number: r.Number, Stored: r.Stored, Who: r.Who, Message: r.Message, Change: r.Change, SHA256: r.Sum}
}

func (s *Server) revisions(w http.ResponseWriter, r *http.Request) {
	shown := []Revision{}
	if s.config.Revisions != nil {
		all, err := s.config.Revisions.History(r.Context())
		if err != nil && all == nil {
			s.failRevision(w, err)
			return
		}
		for _, one := range all {
			shown = append(shown, newRevision(one))
		}
	}
	convention.WriteJSON(w, http.StatusOK, shown)
}

func (s *Server) revision(w http.ResponseWriter, r *http.Request) {
	found, err := s.findRevision(r.Context(), r.PathValue("number"))
	if err != nil {
		s.failRevision(w, err)
		return
	}
	text, err := s.config.Revisions.Text(r.Context(), found)
	if err != nil {
		s.failRevision(w, err)
		return
	}
	shown := newRevision(found)
	shown.Text = string(text)
	convention.WriteJSON(w, http.StatusOK, shown)
}

var errNumber = errors.New("want the number of a revision")

func (s *Server) findRevision(ctx context.Context, text string) (r revisions.Revision, err error) {
	number, err := strconv.ParseInt(text, 10, 64)
	switch {
	case err != nil || number < 1:
		return r, errNumber
	case s.config.Revisions == nil:
		return r, revisions.ErrNone
	}
	return s.config.Revisions.About(ctx, number)
}

// Diff is how a revision differs from another.
type Diff struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Diff is in the unified form, part by part. Defaults are written out, and comments do not count. Empty: they are
	// served in the same way.
	Diff string `json:"diff"`
}

// diff compares a revision with the one that the query parameter from names, or else with the one before it.
func (s *Server) diff(w http.ResponseWriter, r *http.Request) {
	to, err := s.findRevision(r.Context(), r.PathValue("number"))
	if err != nil {
		s.failRevision(w, err)
		return
	}
	from := revisions.Revision{Number: to.Number - 1}
	if named := r.URL.Query().Get("from"); named != "" || to.Number > 1 {
		if named == "" {
			named = strconv.FormatInt(to.Number-1, 10)
		}
		if from, err = s.findRevision(r.Context(), named); err != nil {
			s.failRevision(w, err)
			return
		}
	}
	out := Diff{From: from.Number, To: to.Number}
	var gateways [2]*definitions.Gateway
	for i, one := range []revisions.Revision{from, to} {
		if one.Number == 0 {
			continue
		}
		d, err := s.config.Revisions.Load(r.Context(), one)
		if err != nil {
			s.failRevision(w, err)
			return
		}
		gateways[i] = d.Gateway
	}
	name := func(r revisions.Revision) string { return fmt.Sprintf("revision %d", r.Number) }
	if out.Diff, err = revisions.Diff(name(from), gateways[0], name(to), gateways[1]); err != nil {
		s.fail(w, err)
		return
	}
	convention.WriteJSON(w, http.StatusOK, out)
}

// maxBody limits the body of a change, in bytes.
const maxBody = 4 << 10

// RollbackRequest are the details of a rollback.
type RollbackRequest struct {
	// Base is the newest revision that the caller knows. 0: any.
	Base    int64  `json:"base"`
	Message string `json:"message"`
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) {
	var q RollbackRequest
	if !readBody(w, r, maxBody, &q) {
		return
	}
	found, err := s.findRevision(r.Context(), r.PathValue("number"))
	if err != nil {
		s.failRevision(w, err)
		return
	}
	note := revisions.Note{Who: by(r), Message: q.Message}
	if note.Message == "" {
		note.Message = fmt.Sprintf("rollback to revision %d", found.Number)
	}
	if err := s.config.Revisions.Rollback(r.Context(), found, q.Base, note); err != nil {
		s.failRevision(w, err)
		return
	}
	s.config.Logger.Info("definitions rolled back", "revision", found.Number, "by", note.Who, "client", r.RemoteAddr,
		convention.EventAdminRollback.Attr())
	convention.WriteJSON(w, http.StatusOK, map[string]int64{"rolled_back_to": found.Number})
}

// failRevision maps an error about a revision to a response.
func (s *Server) failRevision(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, errNumber):
		writeError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, revisions.ErrNone):
		writeError(w, http.StatusNotFound, "there is no such revision")
	case errors.Is(err, revisions.ErrUnavailable):
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, definitions.ErrFolder):
		writeError(w, http.StatusConflict, err.Error()+", which a rollback does not change: bring back its files by hand, for example with git")
	default:
		writeError(w, http.StatusConflict, err.Error())
	}
}

// maxHeld limits how many addresses and users are listed.
const maxHeld = 1000

// Held is an address or a user whose logins are refused.
type Held struct {
	// Key names it for a ForgiveRequest.
	Key string `json:"key"`
	// Address is the client address. It is empty for a user: the names that were typed are not kept.
	Address string `json:"address,omitempty"`
	// Until is when the next login is admitted, Forgiven when all failures are forgiven.
	Until    time.Time `json:"until"`
	Forgiven time.Time `json:"forgiven"`
}

// shield lists held addresses and users. The query parameter user selects one user by name.
func (s *Server) shield(w http.ResponseWriter, r *http.Request) {
	addresses, users := s.config.Shield.Held(maxHeld)
	name, named := r.URL.Query().Get("user"), r.URL.Query().Has("user")
	shown := func(held []shield.Held) []Held {
		all := []Held{}
		for _, one := range held {
			if named && one.Key != shield.UserKey(name) {
				continue
			}
			h := Held{Key: one.Key.Hex(), Until: one.Until, Forgiven: one.Forgiven}
			if one.Address.IsValid() {
				h.Address = one.Address.String()
			}
			all = append(all, h)
		}
		return all
	}
	convention.WriteJSON(w, http.StatusOK, map[string][]Held{"addresses": shown(addresses), "users": shown(users)})
}

// ForgiveRequest names one address or user whose failed logins are forgotten.
type ForgiveRequest struct {
	Address string `json:"address"`
	User    string `json:"user"`
	Key     string `json:"key"`
}

// key returns the key of the address or the user, of which there must be one.
func (q ForgiveRequest) key() (shield.Key, error) {
	switch q {
	case ForgiveRequest{Address: q.Address}:
		address, err := netip.ParseAddr(q.Address)
		return shield.AddressKey(address), err
	case ForgiveRequest{User: q.User}:
		return shield.UserKey(q.User), nil
	case ForgiveRequest{Key: q.Key}:
		return shield.ParseKey(q.Key)
	}
	return shield.Key{}, errors.New("it names several")
}

func (s *Server) forgive(w http.ResponseWriter, r *http.Request) {
	var q ForgiveRequest
	if !readBody(w, r, maxBody, &q) {
		return
	}
	key, err := q.key()
	if err != nil {
		writeError(w, http.StatusBadRequest, "want one of address (an IP address), user and key (as GET /api/v1/shield shows it)")
		return
	}
	if err := s.config.Shield.Forgive(r.Context(), key); err != nil {
		w.Header().Set("Retry-After", "1")
		writeError(w, http.StatusServiceUnavailable, "forgiven on this gateway; the others were not reached: "+err.Error())
		return
	}
	s.config.Logger.Info("failed logins forgiven", "address", q.Address, "user", q.User, "by", by(r), "client", r.RemoteAddr,
		convention.EventAdminForgive.Attr())
	convention.WriteJSON(w, http.StatusOK, map[string]bool{"forgiven": true})
}
