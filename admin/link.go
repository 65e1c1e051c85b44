package admin

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"gatepost/convention"
)

// linkLifetime is how long a link to the page waits for its use. pageLifetime is how long the token that the page gets
// for it is valid; it ends with the process too.
const (
	linkLifetime = 10 * time.Minute
	pageLifetime = 12 * time.Hour
)

// linkCaller is the caller with the token of a link. Who starts the process may read the file with the tokens of
// operators, so the role is the highest.
var linkCaller = Caller{Name: "the link of the terminal", Role: Operate}

// link is a link to the page with a code that works once. The page exchanges it for a token. Only hashes are kept.
type link struct {
	now func() time.Time

	mu               sync.Mutex
	code, token      [sha256.Size]byte
	codeEnd, pageEnd time.Time // zero: there is none
}

// newCode makes the code of the link, in place of the one before.
func (l *link) newCode() string {
	code := rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.code, l.codeEnd = sha256.Sum256([]byte(code)), l.now().Add(linkLifetime)
	return code
}

var errCode = errors.New("the link was used already, is older than 10 minutes, or is not of this gateway; start gatepost again, or use a token")

// exchange returns a token for a code, which has no use afterwards.
func (l *link) exchange(code string) (token string, end time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	hash := sha256.Sum256([]byte(code))
	if !l.now().Before(l.codeEnd) || subtle.ConstantTimeCompare(l.code[:], hash[:]) != 1 {
		return "", time.Time{}, errCode
	}
	l.codeEnd = time.Time{}
	token = rand.Text()
	l.token, l.pageEnd = sha256.Sum256([]byte(token)), l.now().Add(pageLifetime)
	return token, l.pageEnd, nil
}

// owns reports whether a token with this hash is that of the page.
func (l *link) owns(hash [sha256.Size]byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now().Before(l.pageEnd) && subtle.ConstantTimeCompare(l.token[:], hash[:]) == 1
}

// PageLink returns the URL of the page on the address of a flag, or "" for a Unix socket, which browsers cannot open.
// If there are tokens of operators, the URL has a code that the page exchanges for one, once: show it to the person who
// has started the process, and do not log it.
func (s *Server) PageLink(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil || strings.HasPrefix(address, "unix:") {
		return ""
	}
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, port) + "/"
	if s.access.file != nil {
		url += "#code=" + s.access.link.newCode()
	}
	return url
}

// ExchangeRequest asks for the token of a link to the page.
type ExchangeRequest struct {
	Code string `json:"code"`
}

// ExchangeResponse is the response to an ExchangeRequest.
type ExchangeResponse struct {
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// exchange returns a token for the code of a link. Wrong codes count as wrong tokens.
func (s *Server) exchange(w http.ResponseWriter, r *http.Request) {
	var q ExchangeRequest
	if !readBody(w, r, maxBody, &q) {
		return
	}
	token, end, err := s.access.link.exchange(q.Code)
	if err != nil {
		s.access.respondRefused(w, r, s.access.refuse(r, err))
		return
	}
	s.config.Logger.Info("the link to the page was opened", "client", r.RemoteAddr, convention.EventAdminLinkOpened.Attr())
	convention.WriteJSON(w, http.StatusOK, ExchangeResponse{Token: token, Expires: end.UTC()})
}
