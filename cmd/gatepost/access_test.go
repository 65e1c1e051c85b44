package main

import (
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"gatepost/admin"
	"gatepost/tokens/boltstore"
)

func TestCommandsSendTheirTokenAlsoToAUnixSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	read, operate := "read bob "+strings.Repeat("r", 32)+"\n", "operate alice "+strings.Repeat("o", 32)+"\n"
	store, err := boltstore.Open(dir, boltstore.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	api, err := admin.New(admin.Config{
		TokenFile: file("both", read+operate), Sessions: store, Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	overTCP, overSocket := httptest.NewServer(api), &httptest.Server{Listener: socket, Config: &http.Server{Handler: api}}
	overSocket.Start()
	defer overTCP.Close()
	defer overSocket.Close()
	for _, address := range []string{strings.TrimPrefix(overTCP.URL, "http://"), "unix:" + socket.Addr().String()} {
		for tokens, want := range map[string]string{"": "401", file("read", read): "403", file("operate", operate): "404", file("both", read+operate): "404"} {
			s := &settings{admin: address, adminTokenFile: tokens}
			if _, err := s.do(t.Context(), http.MethodDelete, "/api/v1/sessions/none", nil); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %q: %v, want %s", address, tokens, err, want)
			}
		}
	}
}
