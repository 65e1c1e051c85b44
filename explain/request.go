package explain

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// NewRequest builds a request for a URL or a path. The host of an absolute URL becomes the Host header, as in clients;
// a path is asked under localhost. The path is not normalized, because it can be the subject of the request. A ws or
// wss URL becomes a WebSocket handshake.
func NewRequest(method, target string, headers []Field) (Request, error) {
	r := Request{Method: method, Header: headers}
	scheme, host, target, err := readURL(target)
	if err != nil {
		return r, err
	}
	r.Target, r.Plain = target, scheme == "http" || scheme == "ws"
	if r.Secure = scheme == "https" || scheme == "wss"; r.Secure {
		r.ServerName = serverName(host)
	}
	added := []Field{{Name: "Host", Value: host}}
	if scheme == "ws" || scheme == "wss" {
		if method != http.MethodGet {
			return r, fmt.Errorf("reading the URL: a WebSocket begins with GET, not %s", method)
		}
		added = append(added, handshake...)
	}
	added = slices.DeleteFunc(added, func(f Field) bool {
		return slices.ContainsFunc(headers, func(given Field) bool { return strings.EqualFold(given.Name, f.Name) })
	})
	r.Header = append(added, headers...)
	return r, nil
}

// handshake are the headers of a WebSocket handshake, with the key of the example in RFC 6455 §4.1.
var handshake = []Field{
	{Name: "Connection", Value: "Upgrade"}, {Name: "Upgrade", Value: "websocket"},
	{Name: "Sec-WebSocket-Version", Value: "13"}, {Name: "Sec-WebSocket-Key", Value: "dGhlIHNhbXBsZSBub25jZQ=="},
}

// readURL splits a URL or a path into its scheme in lower case, its host and the rest. For a path
// the scheme is empty and the host is localhost.
func readURL(text string) (scheme, host, target string, err error) {
	host, target = "localhost", text
	if before, rest, whole := strings.Cut(text, "://"); whole && !strings.HasPrefix(text, "/") {
		scheme = strings.ToLower(before)
		if !slices.Contains([]string{"http", "https", "ws", "wss"}, scheme) {
			return "", "", "", fmt.Errorf("reading the URL: the scheme %q is not http, https, ws or wss", before)
		}
		end := strings.IndexAny(rest, "/?#")
		if end < 0 {
			end = len(rest)
		}
		host, target = rest[:end], rest[end:]
		if u, err := url.Parse("http://" + host); err != nil || host == "" || u.User != nil {
			return "", "", "", errors.New("reading the URL: it has no plain host")
		}
		target, _, _ = strings.Cut(target, "#") // clients do not send the fragment
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
	}
	if !strings.HasPrefix(target, "/") && target != "*" {
		return "", "", "", errors.New("reading the URL: want a path such as /orders/5, or a whole URL")
	}
	return scheme, host, target, nil
}
